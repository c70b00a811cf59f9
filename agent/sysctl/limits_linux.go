package sysctl

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// inherited are the limits of this process that become those of all servers together: a
// user namespace keeps its maker's limits, and what is used in it counts for the maker's
// user as well. With the kernel's defaults one server takes them all (ten message queues
// are enough) and its neighbours get errors. Without a limit the memory of each server
// pays, as the kernel charges it for each of these.
var inherited = []struct {
	name     string
	resource int
}{
	{"pending signals", unix.RLIMIT_SIGPENDING},
	{"message queues", unix.RLIMIT_MSGQUEUE},
	{"locked memory", unix.RLIMIT_MEMLOCK},
}

// RaiseLimits frees this process, and the servers that it starts from now on, of those
// limits. The error names those that stay, which without CAP_SYS_RESOURCE are all.
func RaiseLimits() error {
	var failed []string
	var first error
	for _, l := range inherited {
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); err != nil {
			failed = append(failed, l.name)
			if first == nil {
				first = err
			}
		}
	}
	if first == nil {
		return nil
	}
	return fmt.Errorf("raise limits of %s: %w", strings.Join(failed, ", "), first)
}
