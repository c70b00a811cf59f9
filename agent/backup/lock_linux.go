package backup

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lockFolder keeps other processes that call it out until the file is closed.
func lockFolder(root *os.Root, name string) (*os.File, error) {
	folder, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(folder.Fd()), unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		folder.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return folder, nil
}
