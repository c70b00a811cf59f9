//go:build crashpoints

package snapshot

import (
	"os"
	"syscall"
)

// crashPoint ends the process by SIGKILL where REFLEJO_CRASH_AT names this place, one of
// [Places]. Only test builds have it (tag crashpoints).
func crashPoint(place string) {
	if os.Getenv("REFLEJO_CRASH_AT") == place {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
