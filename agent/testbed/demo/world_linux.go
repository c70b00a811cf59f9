package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed/inventory"
)

// world is what the demo works with: the bed, and the directory of its HCL.
type world struct {
	bed  *testbed.Bed
	dir  string
	vars map[string]string
}

// command runs a program as the operator and returns what it printed.
func (w *world) command(ctx context.Context, argv ...string) (string, error) {
	cmd := w.bed.Command(ctx, argv...)
	cmd.Dir = w.dir
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("run %s: %w\n%s%s", strings.Join(argv, " "), err, tail(out.String()), tail(stderr.String()))
	}
	return out.String(), nil
}

func tail(text string) string { return text[max(0, len(text)-2000):] }

// terraform runs one of its commands with the demo's variables.
func (w *world) terraform(ctx context.Context, command string, args ...string) (string, error) {
	if command != "init" {
		text, err := json.Marshal(w.vars)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(w.dir, "demo.auto.tfvars.json"), text, 0o644); err != nil {
			return "", err
		}
	}
	return w.command(ctx, append([]string{"terraform", command, "-no-color", "-input=false"}, args...)...)
}

// apply makes the configuration so and returns Terraform's closing line and how long it took.
func (w *world) apply(ctx context.Context, changes map[string]string) (string, time.Duration, error) {
	for name, value := range changes {
		w.vars[name] = value
	}
	start := time.Now()
	out, err := w.terraform(ctx, "apply", "-auto-approve")
	return lineWith(out, "Apply complete!"), time.Since(start), err
}

// lineWith is the first line that has the text.
func lineWith(out, text string) string {
	for line := range strings.Lines(out) {
		if strings.Contains(line, text) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// planIsEmpty reports whether Terraform sees nothing to do.
func (w *world) planIsEmpty(ctx context.Context) (bool, error) {
	_, err := w.terraform(ctx, "plan", "-detailed-exitcode")
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 {
		return false, nil
	}
	return err == nil, err
}

// inside runs a shell script in a server.
func (w *world) inside(ctx context.Context, server, script string) (string, error) {
	out, err := w.command(ctx, "reflejo", "server", "exec", server, "--", "sh", "-c", script)
	return strings.TrimSpace(out), err
}

// server is what a host's agent says of a server, its usage included.
func (w *world) server(ctx context.Context, host, server string) (*reflejov1.Server, error) {
	client, err := w.bed.Client(host)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	got, err := client.Servers.GetServer(ctx, connect.NewRequest(&reflejov1.GetServerRequest{Id: server, Usage: true}))
	if err != nil {
		return nil, fmt.Errorf("read server %s: %w", server, err)
	}
	return got.Msg.GetServer(), nil
}

// usage is what the agent counts for a server.
func (w *world) usage(ctx context.Context, host, server string) (*reflejov1.ServerUsage, error) {
	s, err := w.server(ctx, host, server)
	return s.GetUsage(), err
}

// conditions are what the host's agent says an operator should know.
func (w *world) conditions(ctx context.Context, host string) (map[string]string, error) {
	client, err := w.bed.Client(host)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	got, err := client.Hosts.GetHost(ctx, connect.NewRequest(&reflejov1.GetHostRequest{}))
	if err != nil {
		return nil, fmt.Errorf("read host %s: %w", host, err)
	}
	found := map[string]string{}
	for _, c := range got.Msg.GetHost().GetConditions() {
		found[c.GetType()] = c.GetMessage()
	}
	return found, nil
}

// get reads a page from the operator's place.
func (w *world) get(ctx context.Context, url string) (string, error) {
	transport := &http.Transport{DialContext: w.bed.Dial}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return string(body), err
}

// inventories are what all agents keep, by host, without what is there to stay: the state
// and logs of the agent itself.
func (w *world) inventories() (map[string]inventory.Inventory, error) {
	all := map[string]inventory.Inventory{}
	for _, name := range w.bed.HostNames() {
		host, err := w.bed.Host(name)
		if err != nil {
			return nil, err
		}
		if all[name], err = host.Inventory(); err != nil {
			return nil, err
		}
	}
	return all, nil
}
