//go:build linux && root && crashpoints

package acceptance

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// exhaustion takes as much as it gets of what the kernel has one table of. While the
// attacker holds it, the neighbour and the host must get what they need.
func (s *siege) exhaustion() {
	for _, x := range []struct {
		kind  string
		most  int  // that the attacker tries to take
		needs int  // that the neighbour needs; 0: nobody may have any
		limit bool // a limit of the agent's own stands for all servers
	}{
		{"inotify instances", 4000, 200, false},
		{"inotify watches", 20000, 1000, false},
		{kind: "fanotify groups", most: 1000, needs: 20},
		{"files", 40000, 1000, false},
		{"epoll watches", 8000, 200, false},
		{"pipes", 8000, 100, false},
		{"terminals", 6000, 50, false},
		{kind: "keys", most: 10},
		{"namespaces", 500, 5, false},
		{"aio contexts", 2000, 10, false},
		{"semaphores", 4000, 20, false},
		{"datagrams", 4000, 20, false},
		{"message queues", 200, 5, true},
		{"signals", 1000000, 20, true},
	} {
		s.try(x.kind, func(t *testing.T) {
			before := available(t)
			c := s.start(s.mallory, attack, "hold", x.kind, strconv.Itoa(x.most))
			got := c.line()
			if fell := before - available(t); fell > theirMemory+noise {
				t.Errorf("the host's memory fell by %d MiB, a server may have %d", fell>>20, theirMemory>>20)
			}
			t.Log("the attacker got", got)
			code, out := int32(0), ""
			if x.needs > 0 {
				code, out = s.exec(s.alice, attack, "take", x.kind, strconv.Itoa(x.needs))
			} else if !strings.HasPrefix(got, "0 ") {
				t.Error("no server may have any")
			}
			switch {
			case x.limit && !canRaiseLimits(t):
				// Without CAP_SYS_RESOURCE nothing can be done about it, and the agent says so.
				if log, _ := os.ReadFile(s.handle().LogFile()); !strings.Contains(string(log), "one server may exhaust them for all") {
					t.Error("the agent does not warn that its limits could not be raised")
				}
			case code != 0:
				t.Errorf("the neighbour gets only %s", out)
			}
			s.unharmed()
			c.end()
		})
	}
}

// What the host's memory may lose to one server, and to everything else that runs meanwhile.
const (
	theirMemory = 192 << 20
	noise       = 1 << 30
)

// canRaiseLimits reports whether an agent, which has this process's capabilities, can.
func canRaiseLimits(t *testing.T) bool {
	t.Helper()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// available is the host's memory that is free or can be freed, in bytes.
func available(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	t.Fatal("no MemAvailable")
	return 0
}
