package cgroup

import "path"

// Freezer are the files that stop and continue a server's tasks, for who has to do it in a
// moment, and has to be sure that it is undone when this process ends.
type Freezer struct {
	Path   string // is written to
	Freeze string // what stops the tasks
	Thaw   string // what continues them
	State  string // is read; may be Path
	Frozen string // the line there that says that all have stopped
}

// Freezer returns the server's; a group that does not exist is fault.NotFound.
func (m *Manager) Freezer(id string) (Freezer, error) {
	if err := m.exists(id); err != nil {
		return Freezer{}, err
	}
	f := Freezer{Freeze: "FROZEN", Thaw: "THAWED", Frozen: "FROZEN"}
	switch b := m.kind.(type) {
	case *v1:
		f.Path = m.tree.path(b.freezerState(id))
		f.State = f.Path
	case *v2:
		dir := b.dir(id)
		f = Freezer{Freeze: "1", Thaw: "0", Frozen: "frozen 1",
			Path: m.tree.path(path.Join(dir, "cgroup.freeze")), State: m.tree.path(path.Join(dir, "cgroup.events"))}
	}
	return f, nil
}
