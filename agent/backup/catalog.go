package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Found is a complete backup at a target.
type Found struct {
	File
	Target   string
	Manifest Manifest
	Problem  string // why it can't be read; Manifest is empty then
}

// View is the backup as one that this host made looks.
func (f Found) View() View {
	if f.Problem != "" {
		return View{ID: f.Backup, Server: f.Server, Target: f.Target, Size: f.Size, State: PhaseFailed}
	}
	return viewOf(f.Target, f.Manifest, f.Size)
}

const (
	readers    = 8      // manifests that are read at once
	maxCatalog = 10_000 // backups that are kept in memory at once
)

// Catalog is what a target holds of a server ("": of all), whoever made it, oldest first.
// What can't be read is in it too, and says why.
func (m *Manager) Catalog(ctx context.Context, target, server string) ([]Found, error) {
	t, err := m.cfg.Stores.Open(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("list target %s: %w", target, err)
	}
	return catalog(ctx, t, target, server)
}

func catalog(ctx context.Context, t Target, name, server string) ([]Found, error) {
	files, err := t.List(ctx, server)
	if err != nil {
		return nil, fmt.Errorf("list target %s: %w", name, err)
	}
	files = slices.DeleteFunc(files, func(f File) bool { return !f.Complete })
	if len(files) > maxCatalog {
		return nil, fault.New(fault.Exhausted, "list target %s: it has %d backups, at most %d can be read at once; ask for those of one server", name, len(files), maxCatalog)
	}
	all := make([]Found, len(files))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, f := range files {
		group.Go(func() error {
			all[i] = Found{File: f, Target: name}
			manifest, err := manifestAt(gctx, t, f.Ref)
			var damage *Damage
			switch {
			case fault.Is(err, fault.NotFound): // deleted meanwhile
				all[i] = Found{}
			case errors.As(err, &damage), fault.Is(err, fault.Precondition):
				all[i].Problem = err.Error()
			case err != nil:
				return err
			}
			all[i].Manifest = manifest
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("list target %s: %w", name, err)
	}
	all = slices.DeleteFunc(all, func(f Found) bool { return f.Backup == "" })
	slices.SortFunc(all, func(a, b Found) int {
		return cmp.Or(a.Manifest.Snapshot.Created.Compare(b.Manifest.Snapshot.Created), cmp.Compare(a.Manifest.Depth, b.Manifest.Depth), cmp.Compare(a.Backup, b.Backup))
	})
	return all, nil
}

// manifestAt reads a complete file's manifest, which must be that of its name.
func manifestAt(ctx context.Context, t Target, f Ref) (Manifest, error) {
	body := &reopening{ctx: ctx, target: t, file: f}
	defer body.Close()
	manifest, err := ReadManifest(body)
	if err != nil {
		return Manifest{}, fmt.Errorf("read backup %s: %w", f.Backup, err)
	}
	if manifest.ID != f.Backup || manifest.Snapshot.Server != f.Server {
		return Manifest{}, fault.New(fault.Precondition, "read backup %s of server %s: the file says that it is backup %s of server %s", f.Backup, f.Server, manifest.ID, manifest.Snapshot.Server)
	}
	return manifest, nil
}
