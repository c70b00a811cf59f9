//go:build linux && vmguest

package installed

import (
	"strings"
	"testing"
)

// TestAfterPowerCut: nobody does anything, and what should run runs.
func TestAfterPowerCut(t *testing.T) {
	defer func() {
		if t.Failed() {
			t.Log(run(t, "journalctl", "-u", "reflejo", "--no-pager", "-n", "100"))
		}
	}()
	answers(t)
	becomes(t, "web", "running")
	becomes(t, "idle", "suspended") // begun anew and frozen: its memory is lost
	becomes(t, "spare", "stopped")
	t.Log(run(t, "reflejo", "server", "list"))
	if s := get(t, "web"); len(s.GetMessages()) == 0 {
		t.Error("nobody is told that the server was started again")
	}
	limitsAfter(t)
	networkWorks(t)
	t.Log("the last numbers written and known to be on the disk:", inside(t, "web", `md5sum -c /root/sum >/dev/null || exit 1
last=$(tail -n1 /root/log); synced=$(cat /root/synced); echo "$last $synced"
[ "$last" -ge "${synced:-20}" ] && echo x >/root/writable`))
	kernel := run(t, "dmesg")
	for _, bad := range []string{"EXT4-fs error", "XFS (loop", "Corruption", "I/O error", "remounting filesystem read-only"} {
		for line := range strings.Lines(kernel) {
			if strings.Contains(line, bad) && !strings.Contains(line, "Mounting") && !strings.Contains(line, "Ending") && !strings.Contains(line, "Starting recovery") {
				t.Error(strings.TrimSpace(line))
			}
		}
	}
	run(t, "reflejo", "server", "start", "spare")
	becomes(t, "spare", "running")
	for _, name := range []string{"web", "idle", "spare"} {
		run(t, "reflejo", "server", "delete", "--yes", name)
	}
	run(t, "reflejo", "image", "delete", "tiny")
}

func limitsAfter(t *testing.T) {
	t.Helper()
	id := get(t, "web").GetSpec().GetId()
	if cpu, processes := group(t, id, "cpu.max"), group(t, id, "pids.max"); cpu != "60000 100000" || processes != "100" {
		t.Errorf("cpu.max %q, pids.max %q", cpu, processes)
	}
}
