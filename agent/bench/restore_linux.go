package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

const (
	largeDisk = 10 << 30 // of servers that are put back or moved
	largeData = 1024     // MiB that they hold, which does not compress

	restoreTarget = 2000 // ms
)

// restore is V6: a snapshot is put back in place of a running server's disk.
func (r *run) restore(ctx context.Context) (rows []Row, err error) {
	s := r.host.debianSpec("v6")
	s.Disk.Size, s.Network = largeDisk, map[string]*reflejov1.Nic{"eth0": {}}
	defer func() { err = errors.Join(err, r.host.removeAll(ctx, s)) }()
	if err := r.host.create(ctx, s); err != nil {
		return nil, err
	}
	if _, err := r.host.sh(ctx, s.GetId(), booted+fmt.Sprintf("; echo before >/root/word && dd if=/dev/urandom of=/root/data bs=1M count=%d 2>/dev/null && sync", largeData)); err != nil {
		return nil, err
	}
	before, err := r.host.settled(ctx, s.GetId())
	if err != nil {
		return nil, err
	}
	snapshot, err := r.host.snapshot(ctx, s.GetId())
	if err != nil {
		return nil, err
	}
	var back, whole, boot, differs []float64
	for range r.pick(9, 3) {
		if _, err := r.host.sh(ctx, s.GetId(), "echo after >/root/word && dd if=/dev/urandom of=/root/data bs=1M count=100 conv=notrunc 2>/dev/null && sync"); err != nil {
			return nil, err
		}
		began := time.Now()
		down, started, err := r.host.putBack(ctx, s, snapshot)
		if err != nil {
			return nil, err
		}
		word, err := r.host.sh(ctx, s.GetId(), booted+">/dev/null; cat /root/word")
		if err != nil || word != "before" {
			return nil, errors.Join(err, fmt.Errorf("put back, the server has %q", word))
		}
		back, whole, boot = append(back, ms(started.Sub(down))), append(whole, ms(started.Sub(began))), append(boot, ms(time.Since(began)))
		now, err := r.host.settled(ctx, s.GetId())
		if err != nil {
			return nil, err
		}
		differs = append(differs, differences(identity(before), identity(now)))
	}
	return []Row{
		{What: "restore in place, 10 GiB disk: guest has ended → its first process runs again", Unit: "ms", Values: back, Target: AtMost(restoreTarget), Note: fmt.Sprintf("%d MiB of data, 100 MiB changed", largeData)},
		{What: "request → first process runs, with the guest's clean stop", Unit: "ms", Values: whole},
		{What: "request → systemd running again", Unit: "ms", Values: boot},
		{What: "ids, addresses and MACs changed", Values: differs, Target: Between(0, 0)},
	}, nil
}

// identity is what others know a server by.
func identity(s *reflejov1.Server) map[string]string {
	m := map[string]string{"id": s.GetSpec().GetId(), "name": s.GetSpec().GetName()}
	for name, nic := range s.GetNics() {
		m[name+" address"], m[name+" mac"] = nic.GetAddress(), nic.GetMac()
	}
	return m
}

// putBack restores a running server in place, and forgets what it had before. It says when
// the guest's clean stop was over, and when its first process ran again.
func (h *host) putBack(ctx context.Context, s *reflejov1.ServerSpec, snapshot string) (down, started time.Time, err error) {
	safety := uuid.NewString()
	_, err = h.api.Snapshots.RestoreServer(ctx, connect.NewRequest(&reflejov1.RestoreServerRequest{Id: safety, Server: s.GetId(), Snapshot: snapshot}))
	if err != nil {
		return down, started, fmt.Errorf("restore server %s: %w", s.GetName(), err)
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := h.api.Servers.WatchServer(watching, connect.NewRequest(&reflejov1.WatchServerRequest{Id: s.GetId(), UntilSettled: true}))
	if err != nil {
		return down, started, err
	}
	defer stream.Close()
	for stream.Receive() {
		if step := stream.Msg().GetServer().GetOperation().GetStep(); down.IsZero() && step != "" && step != "shutdown" {
			down = time.Now()
		}
	}
	started = time.Now()
	if err := stream.Err(); err != nil {
		return down, started, err
	}
	if err := h.await(ctx, s, "running"); err != nil {
		return down, started, err
	}
	if down.IsZero() {
		return down, started, errors.New("restore: the steps after the guest's stop were not seen")
	}
	return down, started, h.forget(ctx, safety)
}

// snapshot takes a snapshot and returns when it is complete.
func (h *host) snapshot(ctx context.Context, server string) (id string, err error) {
	id = uuid.NewString()
	if _, err := h.api.Snapshots.CreateSnapshot(ctx, connect.NewRequest(&reflejov1.CreateSnapshotRequest{Id: id, Server: server})); err != nil {
		return "", fmt.Errorf("take snapshot: %w", err)
	}
	s, err := h.snapshotSettled(ctx, id)
	if err == nil && s.GetState() != "ready" {
		err = fmt.Errorf("it is %q: %s", s.GetState(), s.GetOperation().GetError())
	}
	if err != nil {
		return "", fmt.Errorf("take snapshot: %w", err)
	}
	return id, nil
}

// forget deletes a snapshot and returns when it is gone.
func (h *host) forget(ctx context.Context, id string) error {
	if _, err := h.snapshotSettled(ctx, id); err != nil {
		return err
	}
	if _, err := h.api.Snapshots.DeleteSnapshot(ctx, connect.NewRequest(&reflejov1.DeleteSnapshotRequest{Id: id})); err != nil {
		return fmt.Errorf("delete snapshot: %w", err)
	}
	s, err := h.snapshotSettled(ctx, id)
	if err == nil && s != nil {
		err = fmt.Errorf("it is still there: %s", s.GetOperation().GetError())
	}
	return err
}

// snapshotSettled waits until no operation is under way; nil when the snapshot is gone.
func (h *host) snapshotSettled(ctx context.Context, id string) (*reflejov1.Snapshot, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := h.api.Snapshots.WatchSnapshot(ctx, connect.NewRequest(&reflejov1.WatchSnapshotRequest{Id: id, UntilSettled: true}))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var last *reflejov1.WatchSnapshotResponse
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := stream.Err(); err != nil && connect.CodeOf(err) != connect.CodeNotFound {
		return nil, fmt.Errorf("watch snapshot: %w", err)
	}
	if last == nil || last.GetGone() {
		return nil, nil
	}
	return last.GetSnapshot(), nil
}
