package provider

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// advice is what to do about an error of a kind, where the agent's own words do not end with it.
var advice = map[fault.Kind]string{
	fault.Internal:    "This is a fault of the host: see the agent's log there, then apply again.",
	fault.Exists:      "Choose another name, or import what is there with `terraform import`.",
	fault.Exhausted:   "Ask for less, choose another host, or free something there.",
	fault.Denied:      "The certificate that the provider uses does not give this right; use an operator's certificate (`reflejo pki issue operator NAME`).",
	fault.Unavailable: "Check that the host is up and its agent runs (`reflejo status`), then apply again: what was begun is taken up where it is.",
	fault.Aborted:     "Another operation is under way; apply again when it is over.",
}

// failed is the error diagnostic for something that an agent refused or could not do:
// what failed, why in the agent's words, what to do; at the attribute to blame if there is one.
func failed(what string, err error) diag.Diagnostic {
	detail := sentence(err.Error())
	if a := advice[fault.KindOf(err)]; a != "" {
		detail += "\n\n" + a
	}
	if field := fault.FieldOf(err); field != "" {
		if p, ok := fieldPath(field); ok {
			return diag.NewAttributeErrorDiagnostic(p, what, fmt.Sprintf("Attribute %s: %s", p, detail))
		}
	}
	return diag.NewErrorDiagnostic(what, detail)
}

// notFound is the error of a data source, at the attribute that names what was looked for.
func notFound(what string, err error) diag.Diagnostic {
	d := failed(what, err)
	return diag.NewAttributeErrorDiagnostic(path.Root("name"), d.Summary(), d.Detail())
}

// stale is the warning of a refresh that could not ask: the last known state is kept.
func stale(what, host string, err error) diag.Diagnostic {
	return diag.NewWarningDiagnostic(what+" could not be refreshed",
		fmt.Sprintf("%s\n\nThe last known state is kept; a change to it will fail until host %s answers. To forget what was on a host that will not come back, set forget_unreachable = true in the provider block and destroy it.",
			sentence(err.Error()), host))
}

// sentence gives text a capital letter and a full stop.
func sentence(text string) string {
	text = strings.TrimSpace(text)
	if text == "" {
		return ""
	}
	text = strings.ToUpper(text[:1]) + text[1:]
	if strings.HasSuffix(text, ".") || strings.HasSuffix(text, "…") {
		return text
	}
	return text + "."
}

// mapAttributes and listAttributes are the attributes whose next step in an agent's field
// name ("network.eth0.allow.0.from") is a key or an index.
var (
	mapAttributes  = map[string]bool{"network": true, "publish": true, "labels": true}
	listAttributes = map[string]bool{"allow": true, "servers": true, "search": true}
	rootAttributes = map[string]bool{
		"name": true, "host": true, "image": true, "power": true, "hostname": true, "timezone": true, "dns": true, "cpu": true,
		"memory": true, "disk": true, "processes": true, "network": true, "first_boot_wo": true, "first_boot_wo_version": true,
		"deletion_protection": true, "on_destroy": true, "labels": true, "id": true, "cidr": true, "nat": true, "hosts": true,
		"source": true, "checksum": true, "snapshot_policy": true, "backup_policy": true, "migration": true, "restore_from": true, "clone_of": true,
		"server_id": true, "snapshot_id": true, "target": true, "description": true, "consistency": true, "incremental": true,
	}
)

// fieldPath turns an agent's name of an attribute into its path; ok is false if it is none of ours.
func fieldPath(field string) (p path.Path, ok bool) {
	parts := strings.Split(field, ".")
	if !rootAttributes[parts[0]] {
		return path.Empty(), false
	}
	p = path.Root(parts[0])
	previous, isKey := parts[0], false
	for _, part := range parts[1:] {
		switch index, err := strconv.Atoi(part); {
		case isKey: // an attribute of a map's element, whatever the key was called
			p, isKey = p.AtName(part), false
		case mapAttributes[previous]:
			p, isKey = p.AtMapKey(part), true
		case listAttributes[previous] && err == nil:
			p, isKey = p.AtListIndex(index), true
		default:
			p = p.AtName(part)
		}
		previous = part
		if isKey {
			previous = ""
		}
	}
	return p, true
}
