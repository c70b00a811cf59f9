//go:build linux && vmguest

package installed

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAfterPowerCut: nobody does anything, and what should run runs. What a server had been
// told is on its disk is there.
func TestAfterPowerCut(t *testing.T) {
	defer logsIfFailed(t)
	hostIsBack(t)
	if s := get(t, "web"); len(s.GetMessages()) == 0 {
		t.Error("nobody is told that the server was started again")
	}
	t.Log("the last numbers written and known to be on the disk:", inside(t, "web", `md5sum -c /root/sum >/dev/null || exit 1
last=$(tail -n1 /root/log); synced=$(cat /root/synced); echo "$last $synced"
[ "$last" -ge "${synced:-20}" ] && echo x >/root/writable`))
	// The host's next end is a clean one: who is asked to end writes that down, and the service
	// what it leaves behind.
	must(t, os.MkdirAll(dropIns, 0o755))
	must(t, os.WriteFile(dropIns+"/test.conf", []byte("[Service]\nExecStopPost=/bin/sh -c 'ls "+groups+" >"+leftAtStop+"'\n"), 0o644))
	run(t, "systemctl", "daemon-reload")
	inside(t, "web", `(trap 'echo asked >/root/asked; exit' TERM; while :; do sleep 1; done) </dev/null >/dev/null 2>&1 &`)
}

const (
	dropIns    = "/etc/systemd/system/reflejo.service.d"
	leftAtStop = "/root/left-at-stop"
)

// TestAfterReboot follows a `systemctl reboot` of the host: servers were shut down before it.
func TestAfterReboot(t *testing.T) {
	defer logsIfFailed(t)
	hostIsBack(t)
	if out := inside(t, "web", "cat /root/asked"); out != "asked" {
		t.Errorf("the server was not asked to end: %q", out)
	}
	left, err := os.ReadFile(leftAtStop)
	must(t, err)
	if id := get(t, "web").GetSpec().GetId(); strings.Contains(string(left), id) || !strings.Contains(string(left), "cgroup.procs") {
		t.Errorf("when the agent had ended there was: %s", left)
	}
	for line := range strings.Lines(run(t, "dmesg")) {
		if strings.Contains(line, "recovery") && strings.Contains(line, "loop") {
			t.Error("a file system was not unmounted:", strings.TrimSpace(line))
		}
	}
	run(t, "reflejo", "server", "start", "spare")
	becomes(t, "spare", "running")
	for _, name := range []string{"web", "idle", "spare"} {
		run(t, "reflejo", "server", "delete", "--yes", name)
	}
	run(t, "reflejo", "image", "delete", "tiny")
	if left, err := filepath.Glob(groups + "/*-*"); err != nil || len(left) != 0 {
		t.Errorf("groups left: %v (%v)", left, err)
	}
}

// hostIsBack checks what must be so after any boot.
func hostIsBack(t *testing.T) {
	t.Helper()
	answers(t)
	becomes(t, "web", "running")
	becomes(t, "idle", "suspended") // begun anew and frozen: its memory is lost
	becomes(t, "spare", "stopped")
	t.Log(run(t, "reflejo", "server", "list"))
	limitsAfter(t)
	networkWorks(t)
	for line := range strings.Lines(run(t, "dmesg")) {
		for _, bad := range []string{"EXT4-fs error", "EXT4-fs warning", "Corruption", "I/O error", "Remounting filesystem read-only"} {
			if strings.Contains(line, bad) {
				t.Error(strings.TrimSpace(line))
			}
		}
	}
}

func logsIfFailed(t *testing.T) {
	if t.Failed() {
		logs(t)
	}
}

func limitsAfter(t *testing.T) {
	t.Helper()
	id := get(t, "web").GetSpec().GetId()
	if cpu, processes := group(t, id, "cpu.max"), group(t, id, "pids.max"); cpu != "60000 100000" || processes != "100" {
		t.Errorf("cpu.max %q, pids.max %q", cpu, processes)
	}
}
