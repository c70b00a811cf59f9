//go:build linux && vmguest

package installed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// testContext outlives every test: programs are not killed while a test reports.
var testContext = context.Background()

const (
	mib = 1 << 20
	gib = 1 << 30
)

// TestInstalled leaves the host as the power cut finds it: a running server that writes, one
// suspended, one stopped.
func TestInstalled(t *testing.T) {
	for _, step := range []struct {
		name string
		f    func(*testing.T)
	}{
		{"package", installPackage}, {"start", startService}, {"image", uploadImage}, {"create", createServers}, {"limits", limitsHold},
		{"network", networkWorks}, {"grow", growLive}, {"suspend", suspendResume}, {"reboot inside", rebootInside},
		{"agent restarts", restartAgent}, {"agent killed", killAgent}, {"upgrade", upgradePackage}, {"writer", startWriter},
	} {
		if !t.Run(step.name, step.f) {
			logs(t)
			t.FailNow() // each builds on those before
		}
	}
}

func installPackage(t *testing.T) {
	uplink(t)
	run(t, "dpkg", "-i", "/testvm/reflejo.deb")
	if state := run(t, "systemctl", "is-enabled", "reflejo.service"); state != "enabled" {
		t.Errorf("the service is %s", state)
	}
	// Nobody has given it a certificate.
	if out, _ := command("systemctl", "is-active", "reflejo.service").CombinedOutput(); strings.TrimSpace(string(out)) != "inactive" {
		t.Errorf("without a certificate the service is %s", out)
	}
}

func startService(t *testing.T) {
	run(t, "reflejo", "pki", "init", "--dir", pkiDir)
	run(t, "reflejo", "pki", "issue", "--dir", pkiDir, "--address", "127.0.0.1", "agent", "alpha")
	run(t, "reflejo", "pki", "issue", "--dir", pkiDir, "operator", "me")
	for from, to := range map[string]string{"ca.crt": "ca.crt", "alpha.crt": "agent.crt", "alpha.key": "agent.key"} {
		run(t, "cp", "-p", filepath.Join(pkiDir, from), filepath.Join(etc, to))
	}
	// The file of the package says what the defaults are, for another network.
	must(t, os.WriteFile(filepath.Join(etc, "agent.hcl"), []byte("name = \"alpha\"\nlog {\n  level = \"debug\"\n}\npool {\n  size = \"4GiB\"\n}\n"), 0o644))
	run(t, "systemctl", "start", "reflejo.service")
	answers(t)
	t.Log(run(t, "reflejo", "status"))
}

func spec(name, power string) *reflejov1.ServerSpec {
	return &reflejov1.ServerSpec{Id: uuid.NewString(), Name: name, Image: "tiny", Power: power, Processes: 100,
		Cpu:     &reflejov1.Cpu{MilliCores: 300, Weight: 50},
		Memory:  &reflejov1.Memory{Max: 96 * mib, High: 80 * mib},
		Disk:    &reflejov1.Disk{Size: gib / 2, WriteBps: 8 * mib, ReadIops: 500},
		Network: map[string]*reflejov1.Nic{"eth0": {Egress: 20e6, Ingress: 50e6}}}
}

func uploadImage(t *testing.T) { run(t, "reflejo", "image", "upload", "tiny", tinyTar(t)) }

func createServers(t *testing.T) {
	web := spec("web", "running")
	web.Network["eth0"].Publish = map[string]*reflejov1.Publish{"http": {Protocol: "tcp", HostPort: 8080, Port: 80}}
	create(t, web, "running")
	create(t, spec("idle", "suspended"), "suspended")
	create(t, spec("spare", "stopped"), "stopped")
	t.Log(run(t, "reflejo", "server", "list"))
}

func limitsHold(t *testing.T) {
	id := get(t, "web").GetSpec().GetId()
	for file, want := range map[string]string{"cpu.max": "30000 100000", "cpu.weight": "50", "memory.max": fmt.Sprint(96 * mib),
		"memory.min": fmt.Sprint(96 * mib), "memory.high": fmt.Sprint(80 * mib), "memory.swap.max": "0", "pids.max": "100"} {
		if got := group(t, id, file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if io := group(t, id, "io.max"); !strings.Contains(io, fmt.Sprint("wbps=", 8*mib)) || !strings.Contains(io, "riops=500") {
		t.Errorf("io.max is %q", io)
	}
	eventually(t, func() error { // lxcfs may have to be started first
		if out := inside(t, "web", "nproc; grep MemTotal /proc/meminfo"); strings.Join(strings.Fields(out), " ") != fmt.Sprintf("1 MemTotal: %d kB", 96<<10) {
			return fmt.Errorf("seen from inside: %q", out)
		}
		return nil
	})
	update(t, "web", func(s *reflejov1.ServerSpec) { s.Cpu.MilliCores, s.Memory.Max, s.Memory.High = 600, 128*mib, 0 })
	if cpu, memory := group(t, id, "cpu.max"), group(t, id, "memory.max"); cpu != "60000 100000" || memory != fmt.Sprint(128*mib) {
		t.Errorf("after the change: cpu.max %q, memory.max %q", cpu, memory)
	}
}

// growLive: a file system in use grows, and what runs on it does not notice.
func growLive(t *testing.T) {
	id := get(t, "web").GetSpec().GetId()
	before, err := lifeOf(t, id)
	must(t, err)
	inside(t, "web", "dd if=/dev/urandom of=/root/data bs=64k count=64 2>/dev/null; md5sum /root/data >/root/sum; sync")
	size := func() int {
		blocks, err := strconv.Atoi(inside(t, "web", "df -m / | tail -n1 | { read a b c; echo $b; }"))
		must(t, err)
		return blocks
	}
	was := size()
	update(t, "web", func(s *reflejov1.ServerSpec) { s.Disk.Size = gib })
	if now := size(); now < was*18/10 {
		t.Errorf("the disk has %d MiB, before it was twice as large %d", now, was)
	}
	inside(t, "web", "md5sum -c /root/sum")
	sameLife(t, id, before)
}

func sameLife(t *testing.T, id string, before life) {
	t.Helper()
	if now, err := lifeOf(t, id); err != nil || now != before {
		t.Errorf("the server's init is %+v (%v), was %+v", now, err, before)
	}
}

func suspendResume(t *testing.T) {
	s := get(t, "web")
	before, err := lifeOf(t, s.GetSpec().GetId())
	must(t, err)
	run(t, "reflejo", "server", "suspend", "web")
	becomes(t, "web", "suspended")
	if events := group(t, s.GetSpec().GetId(), "cgroup.events"); !strings.Contains(events, "frozen 1") {
		t.Errorf("suspended, but %q", events)
	}
	run(t, "reflejo", "server", "resume", "web")
	becomes(t, "web", "running")
	inside(t, "web", "true")
	sameLife(t, s.GetSpec().GetId(), before)
}

func rebootInside(t *testing.T) {
	id := get(t, "web").GetSpec().GetId()
	before, err := lifeOf(t, id)
	must(t, err)
	_ = command("reflejo", "server", "exec", "-n", "web", "--", "reboot", "-f").Run() // it dies with the server
	eventually(t, func() error {
		now, err := lifeOf(t, id)
		if err == nil && now == before {
			err = errors.New("the server did not reboot")
		}
		return err
	})
	becomes(t, "web", "running")
	inside(t, "web", "md5sum -c /root/sum")
}

func restartAgent(t *testing.T) {
	untouched(t, func() { run(t, "systemctl", "restart", "reflejo.service") })
}

func killAgent(t *testing.T) {
	untouched(t, func() { run(t, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", "reflejo.service") })
}

// upgradePackage installs it once more: systemd starts the new program, servers run on.
func upgradePackage(t *testing.T) {
	untouched(t, func() { run(t, "dpkg", "-i", "/testvm/reflejo.deb") })
	if text, err := os.ReadFile(filepath.Join(etc, "agent.hcl")); err != nil || !strings.Contains(string(text), "4GiB") {
		t.Errorf("the configuration was replaced: %q (%v)", text, err)
	}
}

// untouched checks that another agent takes over what runs, and that it runs on.
func untouched(t *testing.T, replace func()) {
	t.Helper()
	main := func() string { return run(t, "systemctl", "show", "--property=MainPID", "--value", "reflejo.service") }
	var lives [2]life
	var ids [2]string
	for i, name := range []string{"web", "idle"} {
		ids[i] = get(t, name).GetSpec().GetId()
		var err error
		lives[i], err = lifeOf(t, ids[i])
		must(t, err)
	}
	old := main()
	replace()
	eventually(t, func() error {
		if now := main(); now == old || now == "0" {
			return fmt.Errorf("the agent is still process %s, was %s", now, old)
		}
		return nil
	})
	answers(t)
	becomes(t, "web", "running")
	becomes(t, "idle", "suspended")
	becomes(t, "spare", "stopped")
	for i := range ids {
		sameLife(t, ids[i], lives[i])
	}
	inside(t, "web", "md5sum -c /root/sum")
	networkWorks(t)
	update(t, "web", func(s *reflejov1.ServerSpec) { s.Labels = map[string]string{"seen": old} }) // it is still the agent's
}

// startWriter leaves a program that writes when power fails.
func startWriter(t *testing.T) {
	inside(t, "web", `(n=0; while :; do n=$((n+1)); echo $n >>/root/log; sync; echo $n >/root/synced; sync; done) </dev/null >/dev/null 2>&1 &`)
	eventually(t, func() error {
		if n, err := strconv.Atoi(inside(t, "web", "tail -n1 /root/log")); err != nil || n < 20 {
			return fmt.Errorf("%d written (%w)", n, err)
		}
		return nil
	})
}
