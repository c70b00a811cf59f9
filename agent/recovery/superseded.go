package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Superseded says which host has taken a server over from this one, "" if none has. An
// error means that neither the places of its backups nor all other hosts have answered, or
// not the host that it has just come from.
func (m *Manager) Superseded(ctx context.Context, r vserver.Record) (string, error) {
	targets := m.targets(r.Spec)
	silent := error(nil)
	for _, target := range targets {
		host, err := m.claimed(ctx, target, r)
		if err != nil {
			silent = errors.Join(silent, err)
		} else if host != "" {
			return host, nil
		}
	}
	// The host that it came from may have given this one up, and said so nowhere else.
	if from := m.cfg.Moves.Awaits(r.Spec.ID); from != "" {
		if host, err := m.ask(ctx, from, r); host != "" || err != nil {
			return host, err
		}
	}
	if len(targets) > 0 && silent == nil {
		return "", nil
	}
	host, err := m.askPeers(ctx, r)
	if host != "" || err == nil || len(targets) == 0 {
		return host, nil // who has no backups can't have been recovered, but for a manual one that went with its host
	}
	return "", errors.Join(silent, err)
}

// targets are where the server's backups are.
func (m *Manager) targets(s vserver.Spec) []string {
	var all []string
	if t := s.BackupPolicy.Target; t != "" {
		all = append(all, t)
	}
	for _, b := range m.cfg.Backups.List(s.ID) {
		if !slices.Contains(all, b.Target) {
			all = append(all, b.Target)
		}
	}
	return all
}

func (m *Manager) claimed(ctx context.Context, target string, r vserver.Record) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	t, err := m.cfg.Stores.Open(ctx, target)
	if err != nil {
		return "", err
	}
	c, err := backup.GetClaim(ctx, t, r.Spec.ID)
	switch {
	case fault.Is(err, fault.NotFound):
		return "", nil
	case err != nil:
		return "", err
	case c.Host != m.cfg.Host && c.Generation > r.Term:
		return c.Host, nil
	}
	return "", nil
}

// askTimeout is how long one place or host may take to answer.
const askTimeout = 10 * time.Second

func (m *Manager) askPeers(ctx context.Context, r vserver.Record) (string, error) {
	hosts := m.cfg.Peers.Hosts()
	if len(hosts) == 0 {
		return "", fault.New(fault.Unavailable, "this host knows no others that it could ask")
	}
	var silent error
	for _, host := range hosts {
		taker, err := m.ask(ctx, host, r)
		if taker != "" {
			return taker, nil
		}
		silent = errors.Join(silent, err)
	}
	return "", silent
}

// ask asks one host whether it has taken the server over.
func (m *Manager) ask(ctx context.Context, host string, r vserver.Record) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	term, err := m.cfg.Peers.Term(ctx, host, r.Spec.ID)
	switch {
	case err != nil:
		return "", fmt.Errorf("ask host %s: %w", host, err)
	case term > r.Term:
		return host, nil
	}
	return "", nil
}
