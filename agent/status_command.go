package main

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

// certificateWarning is how long before its end a certificate is pointed out.
const certificateWarning = 30 * 24 * time.Hour

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show all hosts: what they have, what they promised, what is wrong",
		Long:  "Show all hosts: what they have, what they promised, what is wrong.\nThe exit code is 1 when a host does not answer.",
		Args:  exactly(0, "no arguments"),
		RunE:  func(c *cobra.Command, _ []string) error { return a.status(c.Context()) },
	}
}

func (a *app) status(ctx context.Context) error {
	clients, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	answers := ask(ctx, clients, func(ctx context.Context, c *api.Client) (*reflejov1.Host, error) {
		res, err := c.Hosts.GetHost(ctx, connect.NewRequest(&reflejov1.GetHostRequest{}))
		if err != nil {
			return nil, err
		}
		return res.Msg.GetHost(), nil
	})
	if a.flags.output == "json" {
		var hosts []*reflejov1.Host
		for _, r := range answers {
			if r.err == nil {
				hosts = append(hosts, r.value)
			}
		}
		if err := printMessages(a, hosts); err != nil {
			return err
		}
		return failures(answers)
	}
	var rows [][]string
	for _, r := range answers {
		rows = append(rows, statusRow(r))
	}
	err = a.table([]string{"HOST", "ADDRESS", "STATE", "VERSION", "SERVERS", "CORES", "MEMORY", "DISK", "POOL", "CERTIFICATE"}, rows)
	if err != nil {
		return err
	}
	for _, r := range answers {
		for _, c := range r.value.GetConditions() {
			fmt.Fprintf(a.out, "%s: %s: %s: %s\n", r.client.Name(), severityText(c.GetSeverity()), printable(c.GetType()), printable(c.GetMessage()))
		}
		if end := r.value.GetCertificateExpiresAt(); end != nil && time.Until(end.AsTime()) < certificateWarning {
			fmt.Fprintf(a.out, "%s: warning: the agent's certificate ends at %s: renew it with `reflejo pki renew`\n", r.client.Name(), timeText(end))
		}
	}
	return failures(answers)
}

func statusRow(r answer[*reflejov1.Host]) []string {
	if r.err != nil {
		return []string{r.client.Name(), r.client.Address(), "no answer", "-", "-", "-", "-", "-", "-", "-"}
	}
	h := r.value
	promised, capacity := h.GetPromised(), h.GetCapacity()
	return []string{
		r.client.Name(), r.client.Address(), hostState(h), h.GetVersion(),
		fmt.Sprintf("%d of %d run", h.GetRunningServers(), h.GetServers()),
		units.FormatCores(promised.GetMilliCores()) + "/" + units.FormatCores(capacity.GetMilliCores()),
		roundBytes(promised.GetMemoryBytes()) + "/" + roundBytes(capacity.GetMemoryBytes()),
		roundBytes(promised.GetDiskBytes()) + "/" + roundBytes(capacity.GetDiskBytes()),
		fmt.Sprintf("%s %s/%s", h.GetPool().GetFileSystem(), roundBytes(h.GetPool().GetUsedBytes()), roundBytes(h.GetPool().GetSizeBytes())),
		h.GetCertificateExpiresAt().AsTime().UTC().Format(time.DateOnly),
	}
}

// hostState is the word for a host's worst condition.
func hostState(h *reflejov1.Host) string {
	worst := reflejov1.Condition_SEVERITY_UNSPECIFIED
	for _, c := range h.GetConditions() {
		worst = max(worst, c.GetSeverity())
	}
	switch worst {
	case reflejov1.Condition_SEVERITY_ERROR:
		return "error"
	case reflejov1.Condition_SEVERITY_WARNING:
		return "warning"
	}
	return "ok"
}

func severityText(s reflejov1.Condition_Severity) string {
	switch s {
	case reflejov1.Condition_SEVERITY_ERROR:
		return "error"
	case reflejov1.Condition_SEVERITY_WARNING:
		return "warning"
	}
	return "note"
}
