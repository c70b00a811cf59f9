//go:build terraform

package provider

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
	"github.com/hashicorp/terraform-plugin-go/tftypes"
)

// badInput has, for every attribute that a user may write, values that are wrong. The
// key is the attribute's path without map keys and indexes. A test fails for every
// attribute that has none, so who adds one says here what is wrong for it.
var badInput = map[string]map[string][]string{
	"provider": {
		"hosts":              {`hosts = "alpha"`, `hosts = {}`, `hosts = { "No Name" = { address = "192.0.2.1:1" } }`},
		"hosts.address":      {`hosts = { alpha = { address = "192.0.2.1:port" } }`, `hosts = { alpha = { address = "192.0.2.1:0" } }`, `hosts = { alpha = {} }`},
		"ca_file":            {`ca_file = ""`, `ca_file = "."`},
		"ca_pem":             {`ca_pem = "pki/ca.crt"`},
		"cert_file":          {`cert_file = ""`, "cert_file = \"x\"\ncert_pem = \"-----BEGIN CERTIFICATE-----\""},
		"cert_pem":           {`cert_pem = ""`},
		"key_file":           {`key_file = "."`},
		"key_pem":            {`key_pem = "-----BEGIN CERTIFICATE-----"`},
		"forget_unreachable": {`forget_unreachable = "sometimes"`},
		"lost_hosts":         {`lost_hosts = ["No Name"]`, `lost_hosts = [null]`, `lost_hosts = "alpha"`},
	},
	"resource reflejo_image": {
		"name":            {`name = "No Name"`, `name = ""`, `name = null`},
		"hosts":           {`hosts = []`, `hosts = ["No Name"]`, `hosts = [null]`, `hosts = "alpha"`},
		"source":          {`source = ""`, `source = "oci://"`, `source = "oci://registry.example"`, `source = "host:relative"`, `source = "host:/var/../etc"`, `source = "https://example/x.tar"`},
		"checksum":        {`checksum = "md5:00"`, `checksum = "sha256:00"`, `checksum = ""`},
		"timeouts":        {`timeouts = "10m"`},
		"timeouts.create": {`timeouts = { create = "soon" }`, `timeouts = { create = "-1m" }`, `timeouts = { create = "0s" }`},
		"timeouts.update": {`timeouts = { update = "10" }`},
	},
	"resource reflejo_network": {
		"name":  {`name = "No Name"`, `name = "-a"`},
		"hosts": {`hosts = []`, `hosts = ["No Name"]`, "cidr = \"10.77.0.0/28\"\nhosts = [\"a\", \"b\", \"c\"]"},
		"cidr":  {`cidr = "10.77.0.0"`, `cidr = "10.77.0.1/24"`, `cidr = "10.77.0.0/29"`, `cidr = "10.0.0.0/7"`, `cidr = "fd00::/64"`, `cidr = "127.0.0.0/24"`, `cidr = "224.0.0.0/24"`},
		"nat":   {`nat = "perhaps"`},
	},
	"resource reflejo_virtual_server": {
		"name":                         {`name = "No Name"`, `name = "` + strings.Repeat("a", 64) + `"`, `name = "a.b"`},
		"host":                         {`host = "No Name"`},
		"image":                        {`image = ""`, `image = "No Name"`, `image = "sha256:00"`},
		"replace_on_image_change":      {`replace_on_image_change = "perhaps"`},
		"power":                        {`power = "on"`, `power = ""`},
		"hostname":                     {`hostname = "under_score"`, `hostname = "` + strings.Repeat("a.", 33) + `a"`},
		"timezone":                     {`timezone = "Mars/Olympus"`, `timezone = ""`, `timezone = "../etc/passwd"`},
		"processes":                    {`processes = 15`, `processes = 1.5`, `processes = 4194305`},
		"labels":                       {`labels = { "-" = "x" }`, `labels = { a = "` + strings.Repeat("x", 256) + `" }`, `labels = { a = null }`, `labels = ["a"]`},
		"dns":                          {`dns = {}`, `dns = "192.0.2.53"`},
		"dns.servers":                  {`dns = { servers = ["resolver.example"] }`, `dns = { servers = [] }`, `dns = { servers = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7"] }`},
		"dns.search":                   {`dns = { search = ["under_score"] }`},
		"cpu":                          {`cpu = 2`},
		"cpu.cores":                    {`cpu = { cores = 0 }`, `cpu = { cores = 0.0001 }`, `cpu = { cores = -1 }`, `cpu = { cores = 5000 }`, `cpu = { cores = "many" }`, `cpu = { cores = 1e99 }`},
		"cpu.weight":                   {`cpu = { weight = 0 }`, `cpu = { weight = 10001 }`},
		"cpu.pin":                      {`cpu = { pin = "3-1" }`, `cpu = { pin = "" }`, `cpu = { pin = "a" }`, `cpu = { cores = 3, pin = "0-1" }`},
		"memory":                       {`memory = "2GiB"`},
		"memory.max":                   {`memory = { max = "2 GiB" }`, `memory = { max = "2G" }`, `memory = { max = "15MiB" }`, `memory = { max = "65TiB" }`, `memory = { max = "" }`, `memory = { max = "-2GiB" }`},
		"memory.high":                  {`memory = { high = "0" }`, `memory = { high = "1GiB", max = "512MiB" }`, `memory = { high = "513MiB" }`},
		"memory.swap":                  {`memory = { swap = "some" }`, `memory = { swap = "65TiB" }`},
		"disk":                         {`disk = "20GiB"`},
		"disk.size":                    {`disk = { size = "1MiB" }`, `disk = { size = "67108865B" }`, `disk = { size = "65TiB" }`, `disk = { size = "10gb" }`},
		"disk.read_bps":                {`disk = { read_bps = "0" }`, `disk = { read_bps = "200mbit" }`},
		"disk.write_bps":               {`disk = { write_bps = "1KiB" }`},
		"disk.read_iops":               {`disk = { read_iops = 9 }`, `disk = { read_iops = "fast" }`},
		"disk.write_iops":              {`disk = { write_iops = 0 }`},
		"network":                      {`network = {}`, `network = { "eth 0" = {} }`, `network = { lo = {} }`, `network = "app"`},
		"network.network":              {`network = { eth0 = { network = "No Name" } }`, `network = { eth0 = { network = "" } }`},
		"network.address":              {`network = { eth0 = { address = "10.77.0.300" } }`, `network = { eth0 = { address = "10.77.0.3/24" } }`, `network = { eth0 = { address = "fd00::1" } }`, `network = { eth0 = { address = "10.77.0.3" }, eth1 = { address = "10.77.0.3" } }`},
		"network.ingress":              {`network = { eth0 = { ingress = "fast" } }`, `network = { eth0 = { ingress = "1kbit" } }`},
		"network.egress":               {`network = { eth0 = { egress = "100MiB" } }`, `network = { eth0 = { egress = "0" } }`},
		"network.publish":              {`network = { eth0 = { publish = { "-" = { host_port = 1, port = 1 } } } }`, `network = { eth0 = { publish = 80 } }`},
		"network.publish.protocol":     {`network = { eth0 = { publish = { web = { protocol = "icmp", host_port = 1, port = 1 } } } }`},
		"network.publish.host_port":    {`network = { eth0 = { publish = { web = { host_port = 0, port = 1 } } } }`, `network = { eth0 = { publish = { a = { host_port = 1, port = 1 }, b = { host_port = 1, port = 2 } } } }`, `network = { eth0 = { publish = { web = { port = 1 } } } }`},
		"network.publish.port":         {`network = { eth0 = { publish = { web = { host_port = 1, port = 65536 } } } }`},
		"network.allow":                {`network = { eth0 = { allow = "all" } }`},
		"network.allow.from":           {`network = { eth0 = { allow = [{ from = "10.77.0.1/16" }] } }`, `network = { eth0 = { allow = [{ from = "anywhere" }] } }`},
		"network.allow.protocol":       {`network = { eth0 = { allow = [{ protocol = "sctp" }] } }`},
		"network.allow.ports":          {`network = { eth0 = { allow = [{ protocol = "tcp", ports = "80-70" }] } }`, `network = { eth0 = { allow = [{ ports = "80" }] } }`, `network = { eth0 = { allow = [{ protocol = "icmp", ports = "80" }] } }`, `network = { eth0 = { allow = [{ protocol = "tcp", ports = "0" }] } }`},
		"first_boot_wo":                {"first_boot_wo = \"echo\"\nfirst_boot_wo_version = \"1\"", `first_boot_wo = "#!/bin/sh"`},
		"first_boot_wo_version":        {`first_boot_wo_version = ""`},
		"deletion_protection":          {`deletion_protection = "perhaps"`},
		"snapshot_policy":              {`snapshot_policy = {}`, `snapshot_policy = "0 * * * *"`, `snapshot_policy = { keep = { last = 1 } }`},
		"snapshot_policy.schedule":     {`snapshot_policy = { schedule = "hourly" }`, `snapshot_policy = { schedule = "" }`, `snapshot_policy = { schedule = "60 * * * *" }`, `snapshot_policy = { schedule = "0 0 31 2 *" }`},
		"snapshot_policy.on":           {`snapshot_policy = { on = [] }`, `snapshot_policy = { on = ["boot"] }`},
		"snapshot_policy.keep":         {`snapshot_policy = { on = ["stop"], keep = {} }`, `snapshot_policy = { on = ["stop"], keep = 7 }`},
		"backup_policy":                {`backup_policy = "s3://x"`},
		"backup_policy.schedule":       {`backup_policy = { target = "host:beta" }`, `backup_policy = { schedule = "@daily", target = "host:beta" }`},
		"backup_policy.target":         {`backup_policy = { schedule = "0 2 * * *" }`, `backup_policy = { schedule = "0 2 * * *", target = "/var/backups" }`, `backup_policy = { schedule = "0 2 * * *", target = "dir:backups" }`, `backup_policy = { schedule = "0 2 * * *", target = "dir:/var/../etc" }`, `backup_policy = { schedule = "0 2 * * *", target = "host:No Name" }`, `backup_policy = { schedule = "0 2 * * *", target = "s3://" }`, `backup_policy = { schedule = "0 2 * * *", target = "s3://bucket/../x" }`},
		"backup_policy.keep":           {`backup_policy = { schedule = "0 2 * * *", target = "host:beta", keep = {} }`},
		"backup_policy.incremental":    {`backup_policy = { schedule = "0 2 * * *", target = "host:beta", incremental = "perhaps" }`},
		"migration":                    {`migration = "warm"`},
		"migration.mode":               {`migration = { mode = "hot" }`},
		"migration.max_downtime":       {`migration = { max_downtime = "5" }`, `migration = { max_downtime = "0s" }`, `migration = { max_downtime = "2h" }`},
		"migration.bandwidth":          {`migration = { bandwidth = "100MiB" }`, `migration = { bandwidth = "0" }`},
		"migration.snapshots":          {`migration = { snapshots = "some" }`},
		"restore_from":                 {`restore_from = "before-upgrade"`, `restore_from = ""`},
		"clone_of":                     {`clone_of = "before-upgrade"`},
		"on_destroy.keep_snapshots":    {`on_destroy = { keep_snapshots = "some" }`},
		"snapshot_policy.keep.last":    {`snapshot_policy = { on = ["stop"], keep = { last = 0 } }`},
		"snapshot_policy.keep.hourly":  {`snapshot_policy = { on = ["stop"], keep = { hourly = 1.5 } }`},
		"snapshot_policy.keep.daily":   {`snapshot_policy = { on = ["stop"], keep = { daily = 1001 } }`},
		"snapshot_policy.keep.weekly":  {`snapshot_policy = { on = ["stop"], keep = { weekly = -1 } }`},
		"snapshot_policy.keep.monthly": {`snapshot_policy = { on = ["stop"], keep = { monthly = "many" } }`},
		"backup_policy.keep.last":      {`backup_policy = { schedule = "0 2 * * *", target = "host:beta", keep = { last = 0 } }`},
		"backup_policy.keep.hourly":    {`backup_policy = { schedule = "0 2 * * *", target = "host:beta", keep = { hourly = 1.5 } }`},
		"backup_policy.keep.daily":     {`backup_policy = { schedule = "0 2 * * *", target = "host:beta", keep = { daily = 1001 } }`},
		"backup_policy.keep.weekly":    {`backup_policy = { schedule = "0 2 * * *", target = "host:beta", keep = { weekly = -1 } }`},
		"backup_policy.keep.monthly":   {`backup_policy = { schedule = "0 2 * * *", target = "host:beta", keep = { monthly = "many" } }`},
		"on_destroy":                   {`on_destroy = "30s"`},
		"on_destroy.shutdown_timeout":  {`on_destroy = { shutdown_timeout = "0s" }`, `on_destroy = { shutdown_timeout = "2h" }`, `on_destroy = { shutdown_timeout = "30" }`},
		"timeouts":                     {`timeouts = 10`},
		"timeouts.create":              {`timeouts = { create = "soon" }`, `timeouts = { create = "-5m" }`},
		"timeouts.update":              {`timeouts = { update = "0s" }`},
		"timeouts.delete":              {`timeouts = { delete = "never" }`},
	},
	"resource reflejo_snapshot": {
		"server_id":       {`server_id = "web"`, `server_id = null`},
		"name":            {`name = "No Name"`, `name = ""`},
		"description":     {`description = ""`, `description = "` + strings.Repeat("x", 1025) + `"`},
		"labels":          {`labels = { "-" = "x" }`, `labels = { a = null }`},
		"consistency":     {`consistency = "none"`},
		"triggers":        {`triggers = {}`, `triggers = { release = null }`, `triggers = "1"`},
		"timeouts":        {`timeouts = 10`},
		"timeouts.create": {`timeouts = { create = "0s" }`},
		"timeouts.delete": {`timeouts = { delete = "soon" }`},
	},
	"resource reflejo_backup": {
		"snapshot_id":     {`snapshot_id = "before"`, `snapshot_id = null`},
		"target":          {`target = "backups"`, `target = "s3://B/x"`, `target = "dir:/"`, `target = ""`},
		"name":            {`name = "No Name"`},
		"incremental":     {`incremental = "perhaps"`},
		"timeouts":        {`timeouts = "6h"`},
		"timeouts.create": {`timeouts = { create = "-1h" }`},
		"timeouts.delete": {`timeouts = { delete = "0s" }`},
	},
	"data reflejo_snapshot": {
		"name":        {`name = "No Name"`, "server_id = null\nname = null"},
		"server_id":   {`server_id = "web"`},
		"host":        {`host = "No Name"`},
		"most_recent": {`most_recent = "perhaps"`},
	},
	"data reflejo_snapshots": {
		"host":      {`host = "No Name"`},
		"server_id": {`server_id = "web"`},
		"labels":    {`labels = {}`, `labels = { "-" = "x" }`},
	},
	"data reflejo_backups": {
		"target":    {`target = "backups"`},
		"host":      {`host = ""`},
		"server_id": {`server_id = "web"`},
	},
	"data reflejo_host":  {"name": {`name = "No Name"`, `name = ""`}},
	"data reflejo_hosts": {},
	"data reflejo_image": {
		"name": {`name = ""`, `name = "sha256:0"`},
		"host": {`host = "No Name"`},
	},
	"data reflejo_network": {
		"name": {`name = "No Name"`},
		"host": {`host = ""`},
	},
	"data reflejo_virtual_server": {
		"name": {`name = "No Name"`},
		"host": {`host = "No Name"`},
	},
	"data reflejo_virtual_servers": {
		"host":   {`host = "No Name"`},
		"state":  {`state = "on"`},
		"labels": {`labels = {}`, `labels = { "-" = "x" }`},
	},
	// No Terraform on PATH reads these yet: their cases are in TestBadInputOverTheProtocol.
	"list reflejo_image":          {"hosts": nil},
	"list reflejo_network":        {"hosts": nil},
	"list reflejo_virtual_server": {"hosts": nil},
	"list reflejo_snapshot":       {"hosts": nil},
	"list reflejo_backup":         {"hosts": nil},
	"action reflejo_reboot":       {"server_id": nil, "shutdown_timeout": nil, "timeout": nil},
	"action reflejo_snapshot":     {"server_id": nil, "name": nil, "description": nil, "labels": nil, "consistency": nil, "timeout": nil},
	"action reflejo_restore":      {"server_id": nil, "snapshot_id": nil, "timeout": nil},
}

// needed are attributes that a case needs beside the wrong one.
var needed = map[string]map[string]string{
	"resource reflejo_image":          {"name": `"x"`, "hosts": `["alpha"]`, "source": `"oci://registry.example/x:1"`},
	"resource reflejo_network":        {"name": `"x"`, "hosts": `["alpha"]`, "cidr": `"10.77.0.0/24"`},
	"resource reflejo_virtual_server": {"name": `"x"`, "image": `"x"`},
	"resource reflejo_snapshot":       {"server_id": `"8f2c1a52-0000-4000-8000-000000000000"`},
	"resource reflejo_backup":         {"snapshot_id": `"8f2c1a52-0000-4000-8000-000000000000"`, "target": `"host:beta"`},
	"data reflejo_snapshot":           {"name": `"x"`},
	"data reflejo_host":               {"name": `"x"`},
	"data reflejo_image":              {"name": `"x"`},
	"data reflejo_network":            {"name": `"x"`},
	"data reflejo_virtual_server":     {"name": `"x"`},
}

// badCase is one wrong configuration in one file.
type badCase struct{ kind, path, body string }

// configuration is the case as HCL; the number makes its address unique.
func (c badCase) configuration(number int) string {
	body := c.body
	for name, value := range needed[c.kind] {
		if !regexp.MustCompile(`(?m)^` + name + ` *=`).MatchString(c.body) {
			body += "\n" + name + " = " + value
		}
	}
	block, name, _ := strings.Cut(c.kind, " ")
	if block == "provider" {
		return fmt.Sprintf("provider \"reflejo\" {\nalias = \"c%d\"\n%s\n}\ndata \"reflejo_hosts\" \"c%d\" {\nprovider = reflejo.c%d\n}\n", number, body, number, number)
	}
	return fmt.Sprintf("%s %q \"c%d\" {\n%s\n}\n", block, name, number, body)
}

func TestBadInputIsRefusedBeforeAnythingIsTouched(t *testing.T) {
	t.Parallel()
	p := newProtocol(t, func(string) string { return "" })
	var cases []badCase
	for kind, schema := range p.schemas() {
		known := map[string]bool{}
		walk(schema.Block.Attributes, nil, func(path []string, a *tfprotov6.SchemaAttribute) {
			if !a.Required && !a.Optional {
				return
			}
			name := strings.Join(path, ".")
			known[name] = true
			bodies, ok := badInput[kind][name]
			if !ok {
				t.Errorf("%s: no wrong value for attribute %s is tested: add one to badInput", kind, name)
			}
			for _, body := range bodies {
				cases = append(cases, badCase{kind, name, body})
			}
		})
		for name := range badInput[kind] {
			if !known[name] {
				t.Errorf("%s has no attribute %s that a user may write", kind, name)
			}
		}
	}
	dir := t.TempDir()
	byFile := map[string]badCase{}
	for i, c := range cases {
		file := fmt.Sprintf("case%d.tf", i)
		byFile[file] = c
		must(t, os.WriteFile(filepath.Join(dir, file), []byte(c.configuration(i)), 0o600))
	}
	must(t, os.WriteFile(filepath.Join(dir, "versions.tf"), []byte("terraform {\n  required_providers {\n    reflejo = {\n      source = \"reflejo/reflejo\"\n    }\n  }\n}\n"), 0o600))
	cli := newCLI(t)
	cli.must(dir, "init", "-backend=false")
	output, err := cli.run(dir, "validate", "-json")
	if err == nil {
		t.Fatal("everything is valid")
	}
	complaints := validation(t, output)
	for file, c := range byFile {
		last := c.path[strings.LastIndexByte(c.path, '.')+1:]
		if !strings.Contains(strings.Join(complaints[file], "\n"), last) {
			t.Errorf("%s, %s: no error names %s:\n%s\n%s", c.kind, c.body, last, c.configuration(0), strings.Join(complaints[file], "\n"))
		}
	}
}

// validation reads the errors of `terraform validate -json`, by file.
func validation(t *testing.T, output []byte) map[string][]string {
	t.Helper()
	var result struct {
		Diagnostics []struct {
			Severity, Summary, Detail string
			Range                     struct{ Filename string }
			Snippet                   struct{ Code string } // the line at fault
		}
	}
	must(t, json.Unmarshal(output, &result))
	errors := map[string][]string{}
	for _, d := range result.Diagnostics {
		if d.Severity == "error" {
			errors[d.Range.Filename] = append(errors[d.Range.Filename], d.Summary+": "+d.Detail+" ["+d.Snippet.Code+"]")
		}
	}
	return errors
}

func TestBadInputOverTheProtocol(t *testing.T) {
	t.Parallel()
	p := newProtocol(t, func(string) string { return "" })
	for _, kind := range []string{"reflejo_image", "reflejo_network", "reflejo_virtual_server", "reflejo_snapshot", "reflejo_backup"} {
		for _, hosts := range []tftypes.Value{texts(), texts("No Name")} {
			resp, err := p.server.(tfprotov6.ListResourceServer).ValidateListResourceConfig(t.Context(), &tfprotov6.ValidateListResourceConfigRequest{
				TypeName: kind, Config: p.value(p.schema.ListResourceSchemas[kind], map[string]tftypes.Value{"hosts": hosts}),
			})
			must(t, err)
			wantBlame(t, resp.Diagnostics, "hosts")
		}
	}
	const id = "8f2c1a52-0000-4000-8000-000000000000"
	for kind, bad := range map[string]map[string]tftypes.Value{
		"reflejo_reboot":   {"server_id": text("web"), "shutdown_timeout": text("2h"), "timeout": text("soon")},
		"reflejo_snapshot": {"server_id": text("web"), "name": text("No Name"), "description": text(""), "labels": pairs("-", "x"), "consistency": text("none"), "timeout": text("25h")},
		"reflejo_restore":  {"server_id": text("web"), "snapshot_id": text("before"), "timeout": text("0s")},
	} {
		for name, value := range bad {
			config := map[string]tftypes.Value{"server_id": text(id), "snapshot_id": text(id)}
			config[name] = value
			resp, err := p.server.(tfprotov6.ActionServer).ValidateActionConfig(t.Context(), &tfprotov6.ValidateActionConfigRequest{
				ActionType: kind, Config: p.value(p.schema.ActionSchemas[kind].Schema, config),
			})
			must(t, err)
			wantBlame(t, resp.Diagnostics, name)
		}
	}
}

func wantBlame(t *testing.T, diagnostics []*tfprotov6.Diagnostic, attribute string) {
	t.Helper()
	for _, d := range diagnostics {
		if d.Severity == tfprotov6.DiagnosticSeverityError && d.Attribute != nil && strings.Contains(d.Attribute.String(), `"`+attribute+`"`) {
			return
		}
	}
	t.Errorf("no error at %s: %v", attribute, diagnostics)
}
