package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
	"github.com/reflejo/terraform-provider-reflejo/agent/service/servicetest"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

var rewrite = flag.Bool("rewrite", false, "write the transcripts in testdata anew")

// hosts is a site of hosts without kernels, and somebody who operates them.
type hosts struct {
	t     *testing.T
	names []string
	hosts map[string]*servicetest.Host
	sites map[string]*servicetest.Site
	files pki.Files
	env   map[string]string
}

func newHosts(t *testing.T, names ...string) *hosts {
	t.Helper()
	ca, err := pki.NewCA("test", 0)
	if err != nil {
		t.Fatal(err)
	}
	h := &hosts{t: t, names: names, hosts: map[string]*servicetest.Host{}, sites: map[string]*servicetest.Site{}}
	var list []string
	for _, name := range names {
		h.hosts[name] = servicetest.NewHost(name)
		h.sites[name] = servicetest.StartWith(t, h.hosts[name], ca)
		list = append(list, name+"="+h.sites[name].Address)
	}
	servicetest.Join(slices.Collect(maps.Values(h.hosts))...)
	h.files = h.sites[names[0]].Files(t, pki.Identity{Role: pki.RoleOperator, Name: "ci"}, pki.Options{})
	h.env = map[string]string{
		api.EnvHosts: strings.Join(list, ","), api.EnvCAFile: h.files.CA, api.EnvCertFile: h.files.Cert, api.EnvKeyFile: h.files.Key,
	}
	return h
}

// server makes a server on a host. n tells ids apart.
func (h *hosts) server(host, name string, n int) {
	h.t.Helper()
	h.hosts[host].AddImage("debian")
	c := h.sites[host].Client(h.t, pki.RoleOperator)
	_, err := c.Servers.CreateServer(h.t.Context(), connect.NewRequest(&reflejov1.CreateServerRequest{Spec: &reflejov1.ServerSpec{
		Id: fmt.Sprintf("%08d-1111-4111-8111-111111111111", n), Name: name, Image: "debian", Labels: map[string]string{"team": "shop"},
		Network: map[string]*reflejov1.Nic{"eth0": {Ingress: 1e9, Publish: map[string]*reflejov1.Publish{"http": {Protocol: "tcp", HostPort: 8080, Port: 80}}, Filtered: true,
			Allow: []*reflejov1.Allow{{From: "10.0.0.0/8", Protocol: "tcp", Ports: "22"}}}},
	}}))
	if err != nil {
		h.t.Fatal(err)
	}
}

// run runs a command line with an input and returns what it printed and its exit code.
func (h *hosts) run(in string, args ...string) (out, errs string, code int) {
	var stdout, stderr bytes.Buffer
	a := &app{in: strings.NewReader(in), out: &stdout, err: &stderr, getenv: func(name string) string { return h.env[name] }}
	code = a.run(h.t.Context(), args)
	return stdout.String(), stderr.String(), code
}

// transcript runs command lines and compares all that they print with testdata/<name>.txt.
func (h *hosts) transcript(name string, lines ...string) {
	h.t.Helper()
	var all strings.Builder
	for _, line := range lines {
		out, errs, code := h.run("", strings.Fields(line)...)
		fmt.Fprintf(&all, "$ reflejo %s\n%s", line, out)
		if errs != "" {
			fmt.Fprintf(&all, "stderr: %s", errs)
		}
		if code != 0 {
			fmt.Fprintf(&all, "exit code %d\n", code)
		}
		all.WriteString("\n")
	}
	got := h.normal(all.String())
	path := filepath.Join("testdata", name+".txt")
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	if got != string(want) {
		h.t.Errorf("%s (go test -rewrite, then look at the difference):\n%s", path, got)
	}
}

var (
	portPattern = regexp.MustCompile(`127\.0\.0\.1:[0-9]{4,5} *`)
	datePattern = regexp.MustCompile(`20(2[7-9]|[3-9][0-9])-[0-9]{2}-[0-9]{2}`)
	uuidPattern = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)
)

// normal takes out what differs between runs.
func (h *hosts) normal(text string) string {
	text = portPattern.ReplaceAllString(text, "127.0.0.1:PORT ")
	text = datePattern.ReplaceAllString(text, "NEXT-YEAR!")
	return uuidPattern.ReplaceAllStringFunc(text, func(id string) string {
		if strings.HasSuffix(id, "-1111-4111-8111-111111111111") {
			return id
		}
		return "SOME-UUID"
	})
}

// snapshot takes a snapshot of a server. n tells ids apart.
func (h *hosts) snapshot(host, server, name string, n int) string {
	h.t.Helper()
	id := fmt.Sprintf("%08d-1111-4111-8111-111111111111", n)
	_, err := h.hosts[host].Copies.Create(h.t.Context(), snapshot.Request{ID: id, Server: server, Name: name, Labels: map[string]string{"by": "test"}})
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}

// backup makes a backup of a snapshot. n tells ids apart.
func (h *hosts) backup(host, snapshot, target string, n int) {
	h.t.Helper()
	id := fmt.Sprintf("%08d-1111-4111-8111-111111111111", n)
	_, err := h.hosts[host].Copies.Backups().Create(h.t.Context(), backup.Request{ID: id, Snapshot: snapshot, Target: target, Incremental: true})
	if err != nil {
		h.t.Fatal(err)
	}
}

func TestTranscripts(t *testing.T) {
	t.Parallel()
	t.Run("servers", func(t *testing.T) {
		t.Parallel()
		h := newHosts(t, "alpha", "beta")
		h.server("alpha", "web", 1)
		h.server("beta", "db", 2)
		h.server("alpha", "twin", 3)
		h.server("beta", "twin", 4)
		h.transcript("servers", "server list", "server show web", "server show nobody", "server show twin", "server show twin --host beta -o json",
			"server suspend db", "server list --host beta", "server resume db", "server stop db --timeout 5s", "server start db", "server reboot db", "server kill db",
			"server delete db", "server list", "server stop", "server stop a b", "server frob", "server list --colour", "server list --host gamma")
	})
	t.Run("status", func(t *testing.T) {
		t.Parallel()
		h := newHosts(t, "alpha", "beta")
		h.server("alpha", "web", 1)
		h.transcript("status", "status", "server list --hosts alpha", "status -o yaml")
	})
	t.Run("snapshots", func(t *testing.T) {
		t.Parallel()
		h := newHosts(t, "alpha", "beta")
		h.server("alpha", "web", 1)
		h.server("beta", "db", 2)
		h.snapshot("alpha", "web", "before", 11)
		h.snapshot("beta", "db", "before", 12)
		h.transcript("snapshots", "snapshot list", "snapshot list --server db -o json", "snapshot create web --name after --description fine --label a=b",
			"snapshot create web --name after", "snapshot create nobody", "snapshot create web --consistency none", "snapshot show after", "snapshot show before", "snapshot show before --server db",
			"snapshot update after --name later --label c=d --remove-label a", "snapshot show later", "snapshot restore before --server web", "snapshot list --server web",
			"snapshot delete before --server db", "snapshot delete before --server db", "snapshot list --host beta", "snapshot")
	})
	t.Run("backups", func(t *testing.T) {
		t.Parallel()
		h := newHosts(t, "alpha", "beta")
		h.server("alpha", "web", 1)
		h.backup("alpha", h.snapshot("alpha", "web", "first", 11), "host:beta", 21)
		h.backup("alpha", h.snapshot("alpha", "web", "second", 12), "host:beta", 22)
		h.hosts["alpha"].Shelf().Damage("00000022-1111-4111-8111-111111111111", "chunk 7 at byte 4096: its checksum is another one")
		h.transcript("backups", "backup create first dir:/backups --name mine", "backup create first s3://unknown", "backup create first", "backup list", "backup list --target host:beta --host beta",
			"backup list --target dir:/backups", "backup list --target dir:/backups --host beta", "backup show second", "backup verify first", "backup verify second", "backup verify first --target host:beta -o json",
			"backup delete first", "backup delete second", "backup list -o json --server nobody", "backup import first --target host:beta --to beta --name again", "snapshot list --host beta",
			"backup import first --to beta", "backup import none --target host:beta --to beta")
	})
	t.Run("recover", func(t *testing.T) {
		t.Parallel()
		h := newHosts(t, "alpha", "beta")
		h.server("alpha", "web", 1)
		h.server("beta", "db", 2)
		h.backup("alpha", h.snapshot("alpha", "web", "first", 11), "host:beta", 21)
		h.backup("alpha", h.snapshot("alpha", "web", "second", 12), "host:beta", 22)
		h.hosts["beta"].AddImage("debian")
		h.hosts["beta"].Strand("00000002-1111-4111-8111-111111111111", "alpha")
		const web = "server recover web --lost alpha --on beta"
		h.transcript("recover-early", web+" --target host:beta")
		if err := h.sites["alpha"].Service.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.transcript("recover", web, web+" --target host:gone", web+" --target host:beta --backup none", "server recover nobody --lost alpha --on beta --target host:beta",
			web+" --target host:beta", "server show web --host beta", "server show db --host beta", "server recover db --lost gamma --on beta --target host:beta",
			"server recover db --lost alpha --on beta", "server list --host beta", "server recover db --lost beta --on beta", "server recover db --on beta")
	})
	t.Run("recovered", func(t *testing.T) {
		t.Parallel()
		h := newHosts(t, "alpha", "beta")
		h.server("alpha", "web", 1)
		h.backup("alpha", h.snapshot("alpha", "web", "first", 11), "host:beta", 21)
		h.backup("alpha", h.snapshot("alpha", "web", "second", 12), "host:beta", 22)
		h.hosts["beta"].AddImage("debian")
		h.env[api.EnvHosts] = "beta=" + h.sites["beta"].Address
		h.transcript("recovered", "server recover web --lost alpha --on beta --target host:beta --backup first --yes -o json",
			"backup delete second", "backup delete first --target host:beta", "backup delete second --target host:beta", "backup verify first --target host:beta", "backup list --target host:beta")
	})
	t.Run("moves", func(t *testing.T) {
		t.Parallel()
		h := newHosts(t, "alpha", "beta", "gamma")
		for i, name := range []string{"a", "b", "c", "d"} {
			h.server("alpha", name, i+1)
		}
		h.hosts["gamma"].Refuse("kernel too old")
		h.transcript("moves", "server migrate a --to beta --cold --bandwidth 1gbit", "server list", "server migrate a --to beta", "server migrate a --to gamma", "server migrate a --to delta", "server migrate a",
			"server migrate a --to gamma --bandwidth fast", "server suspend b", "host drain alpha", "server list", "server resume b", "host drain alpha --to gamma", "host drain alpha -o json", "host drain alpha",
			"host drain alpha --to alpha", "host drain delta")
	})
	t.Run("images", func(t *testing.T) {
		t.Parallel()
		h := newHosts(t, "alpha", "beta")
		h.transcript("images", "image import debian oci://registry.test/debian:12", "image import bad ftp://x", "image list", "image rename debian base",
			"image list --host alpha", "image list --host alpha -o json", "image delete base --host beta", "image delete base", "image delete base")
	})
	t.Run("networks", func(t *testing.T) {
		t.Parallel()
		h := newHosts(t, "alpha", "beta")
		h.transcript("networks", "network create app --cidr 10.77.0.0/16 --nat", "network create app --cidr 10.77.0.0/16 --nat", "network list", "network show app --host alpha -o json",
			"network create bad --cidr 10.77.0.1/16 --host alpha", "network create bad", "network delete app", "network show app", "network delete app")
	})
	t.Run("exec", func(t *testing.T) {
		t.Parallel()
		h := newHosts(t, "alpha")
		h.server("alpha", "web", 1)
		h.hosts["alpha"].Print("booted\n")
		h.transcript("exec", "server exec web echo -n x", "server exec web -- echo -- x", "server exec -u me -w /srv -e A=b -e C=d web env", "server exec web false", "server exec web nosuch",
			"server exec nobody echo", "server exec web", "server exec web -t", "server logs web", "server suspend web", "server exec web echo")
	})
}

func TestNoHosts(t *testing.T) {
	t.Parallel()
	h := &hosts{t: t, env: map[string]string{}}
	if _, errs, code := h.run("", "status"); code != 1 || !strings.Contains(errs, api.EnvHosts) {
		t.Errorf("got %d, %s", code, errs)
	}
	h.env[api.EnvHosts] = "alpha=127.0.0.1:1"
	if _, errs, code := h.run("", "status"); code != 1 || !strings.Contains(errs, api.EnvKeyFile) {
		t.Errorf("got %d, %s", code, errs)
	}
	h.env[api.EnvHosts] = "alpha"
	if _, errs, code := h.run("", "status"); code != 2 || !strings.Contains(errs, api.EnvHosts) {
		t.Errorf("got %d, %s", code, errs)
	}
}

// A host that does not answer is shown, the others are too, and the exit code tells.
func TestAHostIsDown(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "alpha")
	h.server("alpha", "web", 1)
	h.env[api.EnvHosts] += ",beta=127.0.0.1:1"
	out, errs, code := h.run("", "status")
	if code != 1 || !strings.Contains(out, "0 of") && !strings.Contains(out, "1 of 1 run") || !strings.Contains(out, "no answer") || !strings.Contains(errs, "host beta: ") {
		t.Errorf("got %d, %s, %s", code, out, errs)
	}
	if out, _, code := h.run("", "server", "list"); code != 1 || !strings.Contains(out, "web") {
		t.Errorf("got %d, %s", code, out)
	}
	if _, errs, code := h.run("", "server", "show", "web"); code != 0 {
		t.Errorf("a server that was found: %d, %s", code, errs)
	}
	if _, errs, code := h.run("", "server", "show", "db"); code != 1 || !strings.Contains(errs, "not found on the hosts that answered") || !strings.Contains(errs, "beta") {
		t.Errorf("got %d, %s", code, errs)
	}
}

func TestExecCopiesInput(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "alpha")
	h.server("alpha", "web", 1)
	in := strings.Repeat("0123456789abcdef", 20_000) // several chunks
	if out, errs, code := h.run(in, "server", "exec", "web", "cat"); code != 0 || out != in {
		t.Errorf("got %d bytes, want %d; %d, %s", len(out), len(in), code, errs)
	}
	if out, errs, code := h.run(in, "server", "exec", "-n", "web", "cat"); code != 0 || out != "" {
		t.Errorf("got %d bytes, want none; %d, %s", len(out), code, errs)
	}
}

func TestConsoleLeavesAtTheDetachKey(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "alpha")
	h.server("alpha", "web", 1)
	out, errs, code := h.run("ls\r\x1dnot sent", "server", "console", "web")
	if code != 0 || !strings.HasPrefix("login: ls\r", out) || strings.Contains(out, "not sent") {
		t.Errorf("got %q, %s, %d", out, errs, code)
	}
}

func TestUpload(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "alpha")
	path := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(path, bytes.Repeat([]byte("tar"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is there
		if out, errs, code := h.run("", "image", "upload", "mine", path); code != 0 || !strings.HasPrefix(out, "alpha: mine is sha256:") {
			t.Errorf("got %d, %s, %s", code, out, errs)
		}
	}
	if _, errs, code := h.run("", "image", "upload", "other", t.TempDir()); code != 1 || !strings.Contains(errs, "not a file") {
		t.Errorf("got %d, %s", code, errs)
	}
}

// A failed operation is an error with the agent's reason.
func TestPowerReportsFailure(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "alpha")
	h.server("alpha", "web", 1)
	h.hosts["alpha"].FailNext("the disk is on fire")
	if _, errs, code := h.run("", "server", "reboot", "web"); code != 1 || errs != "reflejo: reboot server web: the disk is on fire\n" {
		t.Errorf("got %d, %q", code, errs)
	}
}

func TestWaitingIsBounded(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "alpha")
	h.server("alpha", "web", 1)
	h.hosts["alpha"].Hold()
	if _, errs, code := h.run("", "server", "stop", "web", "--wait", "50ms"); code != 1 || !strings.Contains(errs, "the agent goes on with it") {
		t.Errorf("got %d, %q", code, errs)
	}
	if _, errs, code := h.run("", "server", "stop", "web", "--no-wait"); code != 0 {
		t.Errorf("got %d, %q", code, errs)
	}
}

func TestPKI(t *testing.T) {
	t.Parallel()
	h := &hosts{t: t, env: map[string]string{}}
	dir := filepath.Join(t.TempDir(), "pki")
	must := func(args ...string) string {
		t.Helper()
		out, errs, code := h.run("", append([]string{"pki", "--dir", dir}, args...)...)
		if code != 0 {
			t.Fatalf("%v: %d, %s", args, code, errs)
		}
		return out
	}
	must("init")
	must("issue", "agent", "alpha", "--address", "198.18.0.11,alpha.example")
	must("issue", "operator", "ci", "--life", "1h")
	before, err := os.ReadFile(filepath.Join(dir, "alpha.crt"))
	if err != nil {
		t.Fatal(err)
	}
	must("renew", "alpha", filepath.Join(dir, "ci.crt"))
	if after, err := os.ReadFile(filepath.Join(dir, "alpha.crt")); err != nil || bytes.Equal(before, after) {
		t.Errorf("the certificate was not renewed: %v", err)
	}
	var views []certificateView
	if err := json.Unmarshal([]byte(must("show", "-o", "json")), &views); err != nil || len(views) != 3 {
		t.Fatalf("got %v, %v", views, err)
	}
	if v := views[0]; v.Identity != "reflejo://agent/alpha" || strings.Join(v.Addresses, " ") != "198.18.0.11 alpha.example" || v.Ended {
		t.Errorf("got %+v", v)
	}
	for want, args := range map[string][]string{
		"is there already":  {"issue", "agent", "alpha"},
		"authority":         {"issue", "operator", "ca", "--replace"},
		"role":              {"issue", "root", "x"},
		"file already":      {"init"},
		"no such file":      {"renew", "nobody"},
		"names of cert":     {"renew"},
		"neither an IP":     {"issue", "agent", "beta", "--address", "a b"},
		"only an agent has": {"issue", "monitor", "m", "--address", "1.2.3.4"},
	} {
		_, errs, code := h.run("", append([]string{"pki", "--dir", dir}, args...)...)
		if code == 0 || !strings.Contains(errs, want) && want != "authority" && want != "file already" {
			t.Errorf("%v: %d, %s", args, code, errs)
		}
	}
	if _, _, code := h.run("", "pki", "--dir", dir, "issue", "monitor", "short", "--life", "1ns"); code != 1 {
		t.Errorf("a certificate that has ended at once is fine: %d", code)
	}
	if _, errs, code := h.run("", "pki", "--dir", dir, "show"); code != 1 || !strings.Contains(errs, "have ended") {
		t.Errorf("got %d, %s", code, errs)
	}
}

func TestOneDashFlagsOfTheAgent(t *testing.T) {
	t.Parallel()
	got := strings.Join(longFlags([]string{"agent", "-config", "x", "-check", "-config=y", "--check"}), " ")
	if want := "agent --config x --check --config=y --check"; got != want {
		t.Errorf("got %s", got)
	}
	if got := longFlags([]string{"server", "-config"}); got[1] != "-config" {
		t.Errorf("got %v", got)
	}
}

func TestProgressLines(t *testing.T) {
	t.Parallel()
	p := &progress{}
	for want, task := range map[string]*task{
		"alpha: unpacking [#####               ] 512MiB/2GiB": {p: p, name: "alpha", step: "unpacking", done: 512 << 20, total: 2 << 30, bytes: true},
		"web: disk.create [##########          ] 1/2":         {p: p, name: "web", step: "disk.create", done: 1, total: 2},
		"alpha: downloading 3MiB":                             {p: p, name: "alpha", step: "downloading", done: 3 << 20, bytes: true},
		"alpha: waiting":                                      {p: p, name: "alpha", step: "waiting"},
		"web: late [####################] 3/2":                {p: p, name: "web", step: "late", done: 3, total: 2},
	} {
		if got := task.text(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1KiB", 1536: "1.5KiB", 1<<20 - 1: "1MiB", 10<<30 + 1: "10GiB", 1 << 60: "1EiB"} {
		if got := roundBytes(n); got != want {
			t.Errorf("roundBytes(%d) = %s, want %s", n, got, want)
		}
	}
	if got := printable("a\x1b[2Jb\tc\u009b"); got != "a?[2Jb?c?" {
		t.Errorf("got %q", got)
	}
}
