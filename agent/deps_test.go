package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/reflejo/terraform-provider-reflejo"

// arrows are the imports that are allowed between our packages: they only point down, from
// those who ask to those who know. Do not change this table to make a build pass: an arrow
// that is missing is usually code in the wrong place.
var arrows = map[string]struct {
	to     string // folders below agent/, and "provider"
	reason string
}{
	"":         {"provider", "main.go serves the provider and decides nothing"},
	"provider": {"api fault schedule units", "the provider knows the API, so that it builds on every OS and can do nothing that the API can't"},

	// The reflejo program wires the rest together, so it may know all that an agent is made of.
	"agent": {"api backup bridge cgroup console cpuset database disk endpoint fault guard guestinit image metrics migrate network oci peers pki postgres quiesce recovery schedule service snapshot store sysctl units vserver",
		"main wires everything; tests' and benchmarks' packages stay out of the program"},

	// Row 3: requests in, domain calls out.
	"service": {"api backup fault image migrate network pki recovery schedule snapshot store units vserver", "the service translates; what it may touch is the domain, never the kernel"},
	"metrics": {"backup fault image network snapshot vserver", "metrics are read from the domain, so that fakes can be measured too"},

	// Row 2: edges. They know the domain's types; the domain does not know them, and they
	// do not know each other.
	"disk":    {"cpuset fault image snapshot undo units vserver", "an edge serves the domain and stands alone, so that another can take its place"},
	"cgroup":  {"cpuset fault undo units vserver", "an edge serves the domain and stands alone"},
	"quiesce": {"fault undo", "it freezes what it is given, and knows nothing of servers and pools"},
	"bridge":  {"fault network undo units vserver", "an edge serves the domain and stands alone"},
	"oci":     {"console fault guestinit undo units vserver", "an edge serves the domain; the console and the init are parts of running an OS"},

	"postgres": {"database fault guard undo vserver", "an edge serves the domain; the guard is a part of running a database"},

	// Row 1: the domain, one folder per word of the user.
	"vserver": {"cpuset fault schedule store undo units", "the domain asks its edges through interfaces of its own"},
	"image":   {"fault store undo units vserver", "the domain asks its edges through interfaces of its own"},
	"network": {"fault store undo units vserver", "the domain asks its edges through interfaces of its own"},
	"migrate": {"endpoint fault network snapshot store undo units vserver", "moving a server is talk between agents about disks and servers; who keeps those is asked through interfaces"},

	"database": {"fault store undo units vserver", "databases live in servers; PostgreSQL and the filter are asked through interfaces of its own"},

	"recovery": {"backup fault snapshot vserver", "a server comes back from a backup: it joins what those packages do"},
	"backup":   {"fault schedule snapshot undo units vserver", "backups are of snapshots; the stores they lie in speak protocols of their own"},
	"peers":    {"backup endpoint fault pki vserver", "what agents ask each other about backups and terms; it carries backup's targets over endpoint's links and keeps nothing itself"},
	"snapshot": {"fault schedule store undo units vserver", "snapshots are of servers; the pool they lie in is an edge"},

	// Row 0: what knows nothing of servers.
	"mirror":    {"", "what a session's nodes decide is a pure function, so that every order of events can be walked"},
	"endpoint":  {"fault pki", "links between agents: what is said on them is the callers'"},
	"schedule":  {"fault", "when something is due and what is kept, nothing else"},
	"api":       {"fault pki", "the contract and how to dial it: clients link this and no more"},
	"store":     {"fault undo", "state is keys and values; what they mean is the owner's"},
	"guard":     {"fault undo", "it keeps one process under another and outlives the agent; what that process is, is the caller's"},
	"console":   {"fault", "it keeps terminals and outlives the agent, so it must stay small"},
	"sysctl":    {"fault", "a table of files and values"},
	"cpuset":    {"fault", "sets of processors, nothing else"},
	"guestinit": {"", "it runs inside servers as process 1: whatever it links is in every server"},
	"pki":       {"fault", "certificates, nothing else"},
	"fault":     {"", "everybody imports it"},
	"undo":      {"", "everybody imports it"},
	"units":     {"", "everybody imports it"},

	// Beside the product.
	"acceptance":          {"", "its tests drive whole hosts; it has no code of its own"},
	"provider/schemajson": {"provider", "it prints the provider's schema for the reference pages"},
	"testbed":             {"api fault pki units vserver", "the testbed uses what a user has: programs and the API"},
	"testvm":              {"api fault pki testbed units", "the virtual machine uses what a user has"},
	"bench":               {"api cgroup bridge cpuset disk fault image network oci pki quiesce service snapshot store testbed undo units vserver", "benchmarks measure the parts as well as the whole"},
}

// pure are the packages that decide: no clock, no randomness, no file, process or network
// of their own, so that every path can be walked by a table.
var pure = map[string]string{
	"fault":    "errors are values",
	"undo":     "a stack of functions",
	"units":    "text to number and back",
	"cpuset":   "sets of processors",
	"schedule": "times in, decisions out",
	"mirror":   "events in, actions out; time is a tick",
}

// timeless are the pure packages that do not even know what a time is.
var timeless = []string{"mirror"}

// impure are the packages of the standard library that a pure package can't import.
var impure = []string{"os", "os/exec", "net", "net/http", "math/rand", "math/rand/v2", "crypto/rand", "syscall", "golang.org/x/sys/unix", "log"}

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath string
	Dir        string
	Doc        string
	Imports    []string
	GoFiles    []string
	Deps       []string
}

// listed are all packages as they are on an OS.
func listed(t *testing.T, goos string) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,Imports,GoFiles,Deps", "./...")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// folder is the name of a package in the tables: that of the folder below agent/ it is in.
func folder(importPath string) string {
	rest := strings.TrimPrefix(strings.TrimPrefix(importPath, module), "/")
	if below, ok := strings.CutPrefix(rest, "agent/"); ok {
		first, _, _ := strings.Cut(below, "/")
		return first
	}
	return rest
}

func TestRuleArrows(t *testing.T) {
	for _, goos := range []string{"linux", "darwin"} {
		for _, p := range listed(t, goos) {
			from := folder(p.ImportPath)
			rule, known := arrows[from]
			if !known {
				t.Errorf("%s is not in the table of arrows (agent/deps_test.go): say there what it may import, and why", p.ImportPath)
				continue
			}
			allowed := strings.Fields(rule.to)
			for _, i := range p.Imports {
				to := folder(i)
				if !strings.HasPrefix(i, module) || to == from || slices.Contains(allowed, to) || isTestPackage(p.ImportPath) {
					continue
				}
				t.Errorf("%s imports %s; it may import %v: %s", p.ImportPath, i, allowed, rule.reason)
			}
		}
	}
}

// isTestPackage reports whether a package is for tests only: it has its own package under
// its folder's name and "test" at the end, as httptest has.
func isTestPackage(importPath string) bool {
	return strings.HasSuffix(importPath, "test")
}

func TestRuleTestPackagesStayInTests(t *testing.T) {
	for _, p := range listed(t, "linux") {
		for _, i := range p.Imports {
			if strings.HasPrefix(i, module) && isTestPackage(i) && !isTestPackage(p.ImportPath) && folder(p.ImportPath) != "bench" {
				t.Errorf("%s imports %s: fakes and contracts do not belong into programs", p.ImportPath, i)
			}
		}
	}
}

func TestRulePurePackages(t *testing.T) {
	for _, p := range listed(t, "linux") {
		reason, isPure := pure[folder(p.ImportPath)]
		if !isPure || isTestPackage(p.ImportPath) {
			continue
		}
		for _, i := range p.Imports {
			if slices.Contains(impure, i) || i == "time" && slices.Contains(timeless, folder(p.ImportPath)) {
				t.Errorf("%s imports %s, but is a pure package (%s): let the caller do it and pass the result in", p.ImportPath, i, reason)
			}
		}
	}
}

// The provider runs on laptops: what it links must not bring an agent along.
func TestRuleProviderLinksNoAgent(t *testing.T) {
	for _, p := range listed(t, "linux") {
		if p.ImportPath != module {
			continue
		}
		for _, d := range p.Deps {
			for _, no := range []string{"vishvananda/netlink", "containerd/", "google/nftables", "opencontainers/", "go.etcd.io/bbolt"} {
				if strings.Contains(d, no) {
					t.Errorf("the provider links %s: it may reach hosts only through agent/api", d)
				}
			}
		}
	}
}

func TestRulePackageDocs(t *testing.T) {
	for _, p := range listed(t, "linux") {
		if p.Doc == "" && len(p.GoFiles) > 0 && !generated(t, filepath.Join(p.Dir, p.GoFiles[0])) {
			t.Errorf("%s has no package comment: say in its first file what it is for and how to use it", p.ImportPath)
		}
	}
}
