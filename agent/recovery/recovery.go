// Package recovery brings servers of a host that is lost for good back on another one, from
// their last backups, and keeps what the lost host still has closed should it return.
//
// Whose a server is, is a claim with a term: a number that grows by one each time that a
// host takes a server over. Claims lie where the backups do, and every host knows those of
// its own servers. A host that was away asks for the claims of its servers before it starts
// them ([Manager.Superseded]): first where the backups are; where that does not answer, all
// other hosts. Only a host that nobody can tell does not start them.
//
//	Recover   find backup → claim → import the snapshot → vserver.Revive
//	          or, where it was being handed over to the lost host: claim → migrate's Reclaim
//
// Each step may be made twice with the same result, so a request that was broken off is
// made again.
package recovery

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Backups are the backups that this host made and those at targets (backup.Manager).
type Backups interface {
	List(server string) []backup.View
	Catalog(ctx context.Context, target, server string) ([]backup.Found, error)
}

// Stores opens targets (backup.Targets).
type Stores interface {
	Open(ctx context.Context, target string) (backup.Target, error)
}

// Snapshots imports snapshots (snapshot.Manager).
type Snapshots interface {
	Import(ctx context.Context, rec snapshot.Record, from snapshot.From) (snapshot.View, error)
}

// Servers are this host's servers (vserver.Manager).
type Servers interface {
	// Owned says whether this host has a server; Term is the term in which it does.
	Owned(id string) bool
	Term(id string) uint64
	Get(idOrName string) (vserver.View, error)
	Revive(ctx context.Context, spec vserver.Spec, c vserver.Capture, term uint64) (vserver.View, error)
}

// Moves are those of servers from and to this host (migrate.Manager).
type Moves interface {
	// Reclaim takes a server back that was being handed over to a host that is lost.
	Reclaim(ctx context.Context, server, lost string, term uint64) error
	// Awaits names the host that a server came from and that may still take it back.
	Awaits(server string) string
}

// Peers are the other hosts (package endpoint).
type Peers interface {
	// Hosts are their names.
	Hosts() []string
	// Term is the term of a server that a host has; 0 if it has not got it.
	Term(ctx context.Context, host, server string) (uint64, error)
}

// Config is what a manager is made of.
type Config struct {
	Host      string
	Backups   Backups
	Stores    Stores
	Snapshots Snapshots
	Servers   Servers
	Moves     Moves
	Peers     Peers
}

// Manager recovers servers on one host.
type Manager struct {
	cfg      Config
	claiming sync.Mutex
}

// NewManager makes a manager.
func NewManager(cfg Config) *Manager { return &Manager{cfg: cfg} }

// Request asks for a server of a lost host.
type Request struct {
	Spec     vserver.Spec // as wanted now
	LostHost string
	Target   string // of the backups; "" is that of the spec's policy
	Backup   string // id; "" is the newest that can be read
}

// Recovered is a server under way, and what it starts from.
type Recovered struct {
	Server vserver.View
	Backup string    // "" if it was taken back, as it is
	At     time.Time // of the backup's snapshot: what was written later is lost
}

// Recover takes a server over from a host that is lost for good. It answers when the server
// is under way. A host that is not lost, as it has the server at a higher term, is
// fault.Aborted; no backup is fault.NotFound.
func (m *Manager) Recover(ctx context.Context, r Request) (Recovered, error) {
	verb := "recover server " + r.Spec.Name
	if r.LostHost == "" || r.LostHost == m.cfg.Host {
		return Recovered{}, fault.Field("host", "%s: host %q is the one to recover it on; name the host that is lost", verb, m.cfg.Host)
	}
	if v, err := m.cfg.Servers.Get(r.Spec.ID); err == nil && v.Leaving != "" {
		return m.reclaim(ctx, v, r.LostHost)
	}
	target := r.Target
	if target == "" {
		target = r.Spec.BackupPolicy.Target
	}
	if target == "" {
		return Recovered{}, fault.Field("backup_policy.target", "%s: it has no backup policy; say where its backups are", verb)
	}
	manifest, known, err := m.find(ctx, target, r)
	if err != nil {
		return Recovered{}, fmt.Errorf("%s: %w", verb, err)
	}
	// Between a claim and the record that it is for nobody else may claim the server.
	m.claiming.Lock()
	defer m.claiming.Unlock()
	term := m.cfg.Servers.Term(r.Spec.ID)
	if !m.cfg.Servers.Owned(r.Spec.ID) { // else this is the same request again, or will be refused
		if term, err = m.raise(ctx, r.Spec.ID, known, target, r.Spec.BackupPolicy.Target); err != nil {
			return Recovered{}, fmt.Errorf("%s: %w", verb, err)
		}
	}
	rec := manifest.Snapshot
	rec.ID = uuid.NewSHA1(uuid.MustParse(manifest.ID), []byte("recover/"+m.cfg.Host)).String()
	if _, err := m.cfg.Snapshots.Import(ctx, rec, snapshot.From{Target: target, Backup: manifest.ID}); err != nil {
		return Recovered{}, fmt.Errorf("%s: %w", verb, err)
	}
	capture := vserver.Capture{ID: rec.ID, Server: rec.Server, Name: rec.Name, Size: rec.Size, Image: rec.Image}
	v, err := m.cfg.Servers.Revive(ctx, r.Spec, capture, term)
	return Recovered{Server: v, Backup: manifest.ID, At: rec.Created}, err
}

// reclaim takes a server back that was being handed over to the lost host. It is as it was,
// and needs no backup.
func (m *Manager) reclaim(ctx context.Context, v vserver.View, lost string) (Recovered, error) {
	id, verb := v.Spec.ID, "take server "+v.Spec.Name+" back"
	if v.Leaving != lost {
		return Recovered{}, fault.New(fault.Precondition, "%s: it is being handed over to host %s, not to host %s", verb, v.Leaving, lost)
	}
	m.claiming.Lock()
	defer m.claiming.Unlock()
	here, targets := m.cfg.Servers.Term(id), m.targets(v.Spec)
	for _, target := range targets {
		if host, _ := m.claimed(ctx, target, vserver.Record{Spec: v.Spec, Term: here}); host != "" {
			return Recovered{}, fault.New(fault.Aborted, "%s: host %s has taken it over", verb, host)
		}
	}
	// The backups may be lost with the host, so none of their places has to take the claim:
	// what the lost host asks should it return is this host (see Superseded).
	term, err := m.raise(ctx, id, here, append([]string{""}, targets...)...)
	if err != nil {
		return Recovered{}, fmt.Errorf("%s: %w", verb, err)
	}
	if err := m.cfg.Moves.Reclaim(ctx, id, lost, term); err != nil {
		return Recovered{}, fmt.Errorf("%s: %w", verb, err)
	}
	v, err = m.cfg.Servers.Get(id)
	return Recovered{Server: v}, err
}

// find is the backup to start from, and the highest term that the backups know of.
func (m *Manager) find(ctx context.Context, target string, r Request) (found backup.Manifest, term uint64, err error) {
	all, err := m.cfg.Backups.Catalog(ctx, target, r.Spec.ID)
	if err != nil {
		return found, 0, err
	}
	for _, f := range all { // the newest comes last
		term = max(term, f.Manifest.Snapshot.Term)
		if f.Problem == "" && (r.Backup == "" || f.Backup == r.Backup) {
			found = f.Manifest
		}
	}
	switch {
	case found.ID != "":
		return found, term, nil
	case r.Backup != "":
		return found, 0, fault.New(fault.NotFound, "target %s has no backup %s of it that can be read", target, r.Backup)
	}
	return found, 0, fault.New(fault.NotFound, "target %s has no backup of it that can be read (%d that can't)", target, len(all))
}

// raise makes the server this host's where its backups are, in a term that is higher than
// known and than any that was claimed there. So is a claim that was this host's own before:
// the server may have moved on in that term, and whoever has it then could not tell the new
// claim from the old one.
//
// The first target must take the claim. The others may be lost as the host is: that they
// can't be reached keeps nobody from a recovery.
func (m *Manager) raise(ctx context.Context, server string, known uint64, targets ...string) (uint64, error) {
	var open []backup.Target
	for i, name := range targets {
		if name == "" || slices.Contains(targets[:i], name) {
			continue
		}
		t, err := m.cfg.Stores.Open(ctx, name)
		if err == nil {
			var was backup.Claim
			if was, err = backup.GetClaim(ctx, t, server); fault.Is(err, fault.NotFound) {
				err = nil
			}
			known = max(known, was.Generation)
		}
		if err == nil {
			open = append(open, t)
		} else if i == 0 {
			return 0, err
		}
	}
	for _, t := range open {
		if err := backup.PutClaim(ctx, t, backup.Claim{Server: server, Host: m.cfg.Host, Generation: known + 1, Time: time.Now().UTC()}); err != nil {
			return 0, err
		}
	}
	return known + 1, nil
}

// ImportRequest asks for a snapshot that is made of a backup.
type ImportRequest struct {
	Snapshot string // id of the new snapshot, made by the client
	Target   string
	Backup   string // id
	Name     string // of the snapshot; "" is the one that the backup was made of
}

// Import begins to make a snapshot of a backup. The same request again is the same import.
func (m *Manager) Import(ctx context.Context, r ImportRequest) (snapshot.View, error) {
	all, err := m.cfg.Backups.Catalog(ctx, r.Target, "")
	if err != nil {
		return snapshot.View{}, err
	}
	i := slices.IndexFunc(all, func(f backup.Found) bool { return f.Backup == r.Backup })
	switch {
	case i < 0:
		return snapshot.View{}, fault.New(fault.NotFound, "import backup %s: target %s has none of this id", r.Backup, r.Target)
	case all[i].Problem != "":
		return snapshot.View{}, fault.New(fault.Precondition, "import backup %s: %s", r.Backup, all[i].Problem)
	}
	rec := all[i].Manifest.Snapshot
	rec.ID = r.Snapshot
	if r.Name != "" {
		rec.Name = r.Name
	}
	return m.cfg.Snapshots.Import(ctx, rec, snapshot.From{Target: r.Target, Backup: r.Backup})
}
