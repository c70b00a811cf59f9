package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
)

// besideSuffix names the group of what runs beside the servers.
const besideSuffix = "-beside"

// Beside makes the group for processes of the host that outlive the agent and must not be
// under its, nor under any server's, limits and freezer, and returns its directories: whoever
// writes itself into each one's cgroup.procs is in it. It has no limits, and goes before all
// others when it needs the processor, which is rarely.
func (m *Manager) Beside() ([]string, error) {
	dirs := m.beside()
	for _, d := range dirs {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make group beside servers: %w", err)
		}
		for file, most := range map[string]string{"cpu.shares": "262144", "cpu.weight": "10000"} {
			if err := writeExisting(path.Join(d, file), most); err != nil {
				return nil, fmt.Errorf("make group beside servers: %w", err)
			}
		}
	}
	return dirs, nil
}

func (m *Manager) beside() []string {
	var dirs []string
	for _, p := range m.parents() {
		// A group without cores takes no process, and one with all of them is no different.
		if path.Base(path.Dir(p)) != "cpuset" {
			dirs = append(dirs, m.tree.path(p)+besideSuffix)
		}
	}
	return dirs
}

// writeExisting writes a kernel's file, if the hierarchy has it.
func writeExisting(name, value string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
