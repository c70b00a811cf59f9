//go:build !linux

package backup

import (
	"os"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// lockFolder exists so that the package builds; agents run on Linux only.
func lockFolder(*os.Root, string) (*os.File, error) {
	return nil, fault.New(fault.Unavailable, "lock folder: only Linux can")
}
