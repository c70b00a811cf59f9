//go:build linux && root && crashpoints

package acceptance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// A backup that is made on one host, and one that builds on it, come back on another host
// with everything that was in the server. Whatever is damaged in them is found.
func TestBackupsTravel(t *testing.T) {
	hosts := newHosts(t, "alpha", "gamma")
	alpha, gamma := hosts[0], hosts[1]
	s := alpha.recording("subject", alpha.tinyImage(), buildRecord(t))
	for name, target := range map[string]string{"directory": "dir:" + alpha.backupDir(), "host": "host:gamma"} {
		t.Run(name, func(t *testing.T) {
			alpha.t, gamma.t = t, t
			w := alpha.write(s.GetId())
			full := alpha.backup(alpha.snapshot(s.GetId()).GetId(), target, true)
			low := w.named.Load()
			snapshot := alpha.snapshot(s.GetId())
			high := w.named.Load() + 1
			w.end()
			more := alpha.backup(snapshot.GetId(), target, true)
			if full.GetParentId() != "" || more.GetParentId() != full.GetId() || more.GetSize() >= full.GetSize() {
				t.Errorf("full %v, incremental %v", full, more)
			}
			for _, b := range []*reflejov1.Backup{full, more} {
				if problem := alpha.verify(b.GetId(), target); problem != "" {
					t.Errorf("backup %s: %s", b.GetId(), problem)
				}
			}
			arrived := gamma.bring(more.GetId(), target)
			if arrived.GetChecksum() != snapshot.GetChecksum() || arrived.GetState() != "ready" {
				t.Fatalf("what arrived is %v, what was sent %v", arrived, snapshot)
			}
			clone := gamma.clone(arrived.GetId())
			if n := gamma.checked(clone.GetSpec().GetId()); n < low || n > high {
				t.Errorf("it has %d records: %d were there before, %d after", n, low, high)
			}
			gamma.remove(clone.GetSpec().GetId())
			if name == "directory" {
				alpha.damaged(more, target)
			}
		})
	}
}

// damaged checks that a flipped bit in a backup's file is found, wherever it is.
func (h *host) damaged(b *reflejov1.Backup, target string) {
	files, err := filepath.Glob(filepath.Join(h.backupDir(), "*", b.GetId()+".*"))
	if err != nil || len(files) != 1 {
		h.t.Fatalf("files of backup %s: %v %v", b.GetId(), files, err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		h.t.Fatal(err)
	}
	for _, at := range []int{0, len(whole) / 3, len(whole) / 2, len(whole) - 1} {
		bad := append([]byte{}, whole...)
		bad[at] ^= 0x10
		if err := os.WriteFile(files[0], bad, 0o600); err != nil {
			h.t.Fatal(err)
		}
		if problem := h.verify(b.GetId(), target); problem == "" {
			h.t.Errorf("a bit flipped at byte %d of %d was not found", at, len(whole))
		}
	}
	if err := os.WriteFile(files[0], whole, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// A server that moves while it writes keeps every record, its address and its MAC, and is
// on one host only; there and back again.
func TestServersMove(t *testing.T) {
	hosts := newHosts(t, "alpha", "beta")
	network := span(hosts, "10.91.0.0/24")
	s := spec("subject", hosts[0].tinyImage())
	s.Cpu.MilliCores, s.KeepSnapshots = 500, true
	s.Network = map[string]*reflejov1.Nic{"eth0": {Network: network}}
	nic := hosts[0].create(s).GetNics()["eth0"]
	hosts[0].put(s.GetId(), "/bin/record", buildRecord(t))
	for i, settings := range []*reflejov1.MigrationSettings{nil, {Mode: "cold"}, {Snapshots: true}, {Bandwidth: 800e6}} {
		from, to := hosts[i%2], hosts[1-i%2]
		w := from.write(s.GetId())
		taken := from.snapshot(s.GetId())
		server, err := from.move(to, s.GetId(), settings)
		if err != nil {
			t.Fatalf("move %d: %v", i+1, err)
		}
		w.end()
		if server.GetState() != "running" || server.GetHost() != to.name {
			t.Fatalf("move %d: it is %s on %s", i+1, server.GetState(), server.GetHost())
		}
		if now := server.GetNics()["eth0"]; now.GetAddress() != nic.GetAddress() || now.GetMac() != nic.GetMac() {
			t.Errorf("move %d: it was %v, is %v", i+1, nic, now)
		}
		if n := to.checked(s.GetId()); n < w.named.Load() {
			t.Errorf("move %d: it has %d records, %d were on stable storage", i+1, n, w.named.Load())
		}
		if _, err := from.api.Servers.GetServer(t.Context(), connect.NewRequest(&reflejov1.GetServerRequest{Id: s.GetId()})); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("move %d: the source still knows it: %v", i+1, err)
		}
		if got := to.snapshots(s.GetId()); (len(got) > 0) != settings.GetSnapshots() && i == 2 {
			t.Errorf("move %d: its snapshots: %v", i+1, got)
		}
		for _, h := range hosts {
			for _, left := range h.snapshots(s.GetId()) {
				if settings.GetSnapshots() && left.GetId() == taken.GetId() && left.GetChecksum() != taken.GetChecksum() {
					t.Errorf("snapshot %v has moved as %v", taken, left)
				}
				h.forget(left.GetId())
			}
		}
	}
	hosts[0].remove(s.GetId())
	for _, h := range hosts {
		h.nothingLeft()
	}
}

// A suspended server can't be moved, nor one to a host that lacks what it needs; it is as
// it was then.
func TestMovesAreRefusedBefore(t *testing.T) {
	hosts := newHosts(t, "alpha", "beta")
	alpha, beta := hosts[0], hosts[1]
	s := spec("subject", alpha.tinyImage())
	s.Network = map[string]*reflejov1.Nic{"eth0": {Network: span(hosts[:1], "10.92.0.0/24")}}
	alpha.create(s)
	if err := alpha.beginMove(beta, s.GetId(), nil); connect.CodeOf(err) != connect.CodeInvalidArgument && connect.CodeOf(err) != connect.CodeNotFound && connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("to a host without its network: %v", err)
	}
	alpha.remove(s.GetId())
	s = spec("other", s.GetImage())
	alpha.create(s)
	suspend(alpha, s)
	if _, err := alpha.move(beta, s.GetId(), nil); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("move what is suspended: %v", err)
	}
	if got := alpha.settled(s.GetId()); got.GetState() != "suspended" {
		t.Errorf("it is %s now", got.GetState())
	}
	if got := beta.settled(s.GetId()); got != nil {
		t.Errorf("the other host has %v", got)
	}
	alpha.remove(s.GetId())
}

// A host is lost for good: its server comes back on another one from its last backup, under
// its own id. When the lost host returns, what it has stays closed.
func TestLostHostsServersComeBack(t *testing.T) {
	hosts := newHosts(t, "alpha", "gamma")
	alpha, gamma := hosts[0], hosts[1]
	s := spec("subject", alpha.tinyImage())
	s.Cpu.MilliCores = 500
	s.BackupPolicy = &reflejov1.BackupPolicy{Schedule: "0 0 1 1 *", Target: "dir:" + alpha.backupDir()}
	alpha.create(s)
	bystander := spec("bystander", s.GetImage())
	bystander.BackupPolicy = s.GetBackupPolicy()
	alpha.create(bystander)
	alpha.put(s.GetId(), "/bin/record", buildRecord(t))
	w := alpha.write(s.GetId())
	low := w.named.Load()
	alpha.backup(alpha.snapshot(s.GetId()).GetId(), s.GetBackupPolicy().GetTarget(), false)
	machine := alpha.machineID(s.GetId())
	w.end()
	if err := alpha.handle().PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	var first *reflejov1.RecoverServerResponse
	for range 2 { // a retry is the same request
		got, err := gamma.api.Servers.RecoverServer(t.Context(), connect.NewRequest(&reflejov1.RecoverServerRequest{Spec: s, LostHost: "alpha"}))
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = got.Msg
		} else if got.Msg.GetBackup() != first.GetBackup() {
			t.Errorf("recovered from %s, then from %s", first.GetBackup(), got.Msg.GetBackup())
		}
		server := gamma.settled(s.GetId())
		if server.GetState() != "running" || server.GetSpec().GetCloneOf() != "" {
			t.Fatalf("recovered, the server is %s (%s)", server.GetState(), server.GetOperation().GetError())
		}
	}
	if n := gamma.checked(s.GetId()); n < low || n > w.named.Load()+1 {
		t.Errorf("it has %d records, %d were backed up", n, low)
	}
	if now := gamma.machineID(s.GetId()); now != machine {
		t.Errorf("it is another machine now: %s, was %s", now, machine)
	}
	if err := alpha.handle().Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	alpha.dial() // the old connection does not know yet that it is dead
	if old := alpha.settled(s.GetId()); old.GetState() != "closed" {
		t.Errorf("back again, the lost host has it %s", old.GetState())
	}
	if other := alpha.settled(bystander.GetId()); other.GetState() != "running" {
		t.Errorf("a server that nobody took over is %s (%s)", other.GetState(), other.GetOperation().GetError())
	}
	if err := power(reflejov1.SetPowerRequest_ACTION_START)(t.Context(), alpha, s); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("start what is closed: %v", err)
	}
	alpha.remove(s.GetId())
	if n := gamma.checked(s.GetId()); n < low {
		t.Errorf("deleting the closed copy took records: %d", n)
	}
}
