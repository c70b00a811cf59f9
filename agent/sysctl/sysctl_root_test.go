//go:build linux && root

package sysctl

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// This kernel takes every value; raising twice changes nothing. The user/ tables need
// CAP_SYS_RESOURCE, which a root in a container may lack: there the error says so.
func TestRaiseOnThisKernel(t *testing.T) {
	for range 2 {
		for _, table := range Tables() {
			err := raise(filepath.Join("/proc/sys", table.Name), table.AtLeast)
			confined := strings.HasPrefix(table.Name, "user/") && !capable(t) && errors.Is(err, fs.ErrPermission)
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !confined {
				t.Errorf("%s: %v", table.Name, err)
			}
		}
	}
}

// capable reports whether this process has CAP_SYS_RESOURCE.
func capable(t *testing.T) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}
