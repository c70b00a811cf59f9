// Package vserver is what a virtual server is, and its life on one host.
//
// The pieces, in the order a request meets them:
//
//	spec.go      what a user asked for (Spec), defaults and validation
//	ledger.go    pure: what the host promised, what it has left
//	admission.go what a new or changed server is given: addresses, ids, its share
//	plan.go      pure: (record, inventory, wanted) → steps
//	manager.go   what callers ask for, one server at a time each
//	work.go      the loop that runs steps
//	hold.go      what others do to a server's disk (snapshots, migration) while nobody else may
//	restore.go   a disk from a snapshot: in place, or for a new server
//	move.go      a server comes from another host, or goes to one
//	edges.go     the kernel as this package needs it; others implement it
//
// A [Record] is persisted before anything is done for it, every step may run
// twice, and a start of the agent plans again from what is there. So an agent
// that is killed at any step finishes or undoes the operation when it is back.
package vserver

import (
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/schedule"
)

// Spec is what a user asked a virtual server to be. Sizes are bytes, rates are
// bytes per second for disks and bits per second for networks.
// Every field except ID, Image and FirstBoot can change while the server lives.
type Spec struct {
	ID       string // UUID made by the client before it asks, so that a retry is the same request
	Name     string // unique on the host; a DNS label
	Image    string // image id ("sha256:…"), set at creation
	Power    Power  // wanted; PowerUnmanaged leaves it as it is
	Hostname string // "" means Name
	Timezone string // IANA name, "" means UTC
	DNS      DNS

	CPU       CPU
	Memory    Memory
	Disk      Disk
	Processes int64 // most tasks (processes and threads) at once

	Network   map[string]NIC // key: the interface's name inside ("eth0")
	FirstBoot FirstBoot

	// RestoreFrom is the snapshot that was last to be put back in place of the disk; a
	// change of it puts one back. "" at creation.
	RestoreFrom string
	// CloneOf is the snapshot that the disk started from; it can't change.
	CloneOf        string
	SnapshotPolicy SnapshotPolicy
	BackupPolicy   BackupPolicy
	Migration      Migration
	KeepSnapshots  bool // its snapshots outlive the server

	DeletionProtection bool
	ShutdownTimeout    time.Duration // how long a clean stop may take before it is forced
	Labels             map[string]string
}

// SnapshotPolicy is what the agent takes snapshots of by itself; the zero value is none.
type SnapshotPolicy struct {
	Schedule string   // cron with five fields, in UTC; "" means none
	On       []string // after which changes of power: start, stop, suspend; sorted
	Keep     schedule.Keep
}

// BackupPolicy is what the agent backs up by itself; the zero value is nothing.
type BackupPolicy struct {
	Schedule    string // cron with five fields, in UTC
	Target      string // see package backup
	Keep        schedule.Keep
	Incremental bool
}

// Migration says how the server is moved to another host.
type Migration struct {
	Mode        string        // MigrateWarm or MigrateCold; "" means warm
	MaxDowntime time.Duration // warm: copying goes on until the rest should take no longer; 0 means DefaultMaxDowntime
	Bandwidth   int64         // bits per second between the hosts; 0 means unlimited
	Snapshots   bool          // its snapshots move along
}

// The modes of migration.
const (
	MigrateWarm = "warm" // copied while it runs, then stopped for the rest
	MigrateCold = "cold" // stopped first
)

// Power is the state that a user wants.
type Power string

// The wanted power states.
const (
	PowerUnmanaged Power = ""
	PowerRunning   Power = "running"
	PowerStopped   Power = "stopped"
	PowerSuspended Power = "suspended"
)

// CPU is a server's share of the processors.
type CPU struct {
	MilliCores int64  // quota in 1/1000 of a core: 1500 is one and a half cores' time per second
	Weight     int64  // 1 … 10000, share under contention; 100 is normal
	Pin        string // cpuset list ("0-1,4"): runs only there, "" means anywhere. Pinned cores are exclusive: no other server is given them
}

// Memory is a server's memory.
type Memory struct {
	Max  int64 // hard limit and guarantee, bytes
	High int64 // above this the kernel reclaims and slows down; 0 means none
	Swap int64 // bytes of swap beyond Max; 0 means none
}

// Disk is the server's one disk. Rates of 0 mean unlimited.
type Disk struct {
	Size      int64 // bytes; grows live, never shrinks
	ReadBPS   int64
	WriteBPS  int64
	ReadIOPS  int64
	WriteIOPS int64
}

// NIC is one network interface of a server.
type NIC struct {
	Network string             // network id, "" means the host's default network
	Address string             // IPv4 address, "" means allocated
	Ingress int64              // bits per second towards the server; 0 means unlimited
	Egress  int64              // bits per second from the server; 0 means unlimited
	Publish map[string]Publish // key: a name of the user's
	// Filtered false: everything on the NIC's networks may come in. True: only what Allow
	// (and Publish) names. Answers to what the server itself began always come in.
	Filtered bool
	Allow    []Allow
}

// Publish opens a port of the host and sends it to a port of the server.
type Publish struct {
	Protocol string // tcp | udp
	HostPort int
	Port     int
}

// Allow lets traffic in on a filtered NIC.
type Allow struct {
	From     string // IPv4 CIDR, "" means any
	Protocol string // tcp | udp | icmp, "" means any
	Ports    string // "5432", "8000-8010", "" means any
}

// DNS is what the server's resolver is told; empty means the host's.
type DNS struct {
	Servers []string
	Search  []string
}

// FirstBoot is data for the server's first start only. It is a secret: it is never
// returned, logged or kept after it was handed to the server.
type FirstBoot struct {
	UserData string // "#cloud-config…" becomes a NoCloud seed, "#!…" a script run once
	Version  string // the user's version of it, which is returned
}

// State is what a server is right now, as people see it.
type State string

// The states of a server. Failed and Stopped keep the disk; nothing runs in them.
const (
	StateCreating  State = "creating"
	StateRunning   State = "running"
	StateStopped   State = "stopped"
	StateSuspended State = "suspended"
	StateDeleting  State = "deleting"
	StateFailed    State = "failed"   // the operation that was to make it failed; only deletion is left
	StateIncoming  State = "incoming" // on its way here from another host, which still has it
	StateClosed    State = "closed"   // another host took it over while this one was lost; only deletion is left
)
