//go:build crashpoints

package database

import (
	"os"
	"syscall"
)

// crashPoint ends the process by SIGKILL where REFLEJO_CRASH_AT names this place as
// "operation/step/before" or "…/after". Only test builds have it (tag crashpoints).
func crashPoint(operation string, step Step, when string) {
	if os.Getenv("REFLEJO_CRASH_AT") == operation+"/"+string(step)+"/"+when {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
