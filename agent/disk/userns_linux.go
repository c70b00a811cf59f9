package disk

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// newUserNamespace makes a user namespace that maps ids 0 … Size-1 to the range, and
// returns a descriptor of it; the kernel keeps it as long as the descriptor or a mount
// made with it. Only a single-threaded process can make one, so a child does: it is
// stopped by the kernel before its first instruction, and killed.
func newUserNamespace(ids vserver.IDRange) (*os.File, error) {
	// The child dies with the thread that made it, and only that thread is its tracer.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(ids.First), Size: int(ids.Size)}}
	child, err := os.StartProcess("/proc/self/exe", []string{"user-namespace"}, &os.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: mapping,
			GidMappings: mapping,
			Ptrace:      true, // stop at exec
			Pdeathsig:   syscall.SIGKILL,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make user namespace for ids from %d: %w", ids.First, err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", child.Pid)) // it is not reaped yet: the pid is its own
	killErr := child.Kill()
	for killErr == nil {
		// The first wait may report the stop at exec instead of the end.
		var ws syscall.WaitStatus
		if _, err := syscall.Wait4(child.Pid, &ws, 0, nil); err == syscall.EINTR {
			continue
		} else if err != nil || ws.Exited() || ws.Signaled() {
			break
		}
	}
	_ = child.Release()
	if err != nil {
		return nil, fmt.Errorf("open user namespace for ids from %d: %w", ids.First, err)
	}
	return f, nil
}
