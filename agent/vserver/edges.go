package vserver

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"time"
)

// The kernel as this package needs it. Each edge has a fake in vservertest and a
// contract function there that runs against the fake and against the real thing.
//
// Rules for every edge: a call takes the whole wanted state of one thing and may be
// made twice; what is already so stays untouched; removing what is not there succeeds;
// List names everything the edge keeps for this agent (by its own prefix or parent),
// so that an agent's start finds what a killed one left; nothing of other programs or
// of another agent on the same kernel is ever listed or touched. Ids are UUIDs in
// lower case. Errors read `verb object: cause` and carry a fault kind where a caller
// can act on it.

// Disks keeps the servers' disks and the pool they live in (package disk).
type Disks interface {
	// Create makes disk id as a copy-on-write clone of the image's base disk with this
	// size in bytes (at least image.Base.Size: fault.Invalid). An existing disk is kept
	// and grown. The new disk is durable when it returns.
	Create(ctx context.Context, id, image string, size int64) error
	// Attach connects the disk to a loop device, mounts it for the host, and mounts it a
	// second time shifted to ids where a runtime finds it.
	Attach(ctx context.Context, id string, ids IDRange) (Attachment, error)
	// Grow makes an attached or detached disk and its file system larger, live.
	// A smaller size than now is fault.Invalid. Where the agent may not grow file systems
	// in use (no CAP_SYS_RESOURCE), an attached disk stays as it is: fault.Precondition.
	Grow(ctx context.Context, id string, size int64) error
	// Detach undoes Attach; the data is on stable storage when it returns.
	Detach(ctx context.Context, id string) error
	// Remove detaches and deletes the disk.
	Remove(ctx context.Context, id string) error
	// List describes all disks of the pool that belong to servers.
	List(ctx context.Context) ([]DiskInfo, error)
}

// IDRange is a server's own range of host user and group ids: Size of them from First.
type IDRange struct {
	First uint32
	Size  uint32
}

// Attachment is an attached disk.
type Attachment struct {
	Root   string // the mount whose owners are the host's ("canonical"); only root can reach it
	Rootfs string // the same file system, ids shifted: the server's root directory
	Major  uint32 // the loop device, for I/O limits
	Minor  uint32
}

// DiskInfo describes a disk.
type DiskInfo struct {
	ID         string
	Size       int64 // what the server sees, bytes
	Used       int64 // allocated in the pool, bytes, shared extents included
	Attached   bool
	Attachment Attachment // valid if Attached
}

// Limits keeps the servers' control groups (package cgroup), v1/hybrid or v2.
type Limits interface {
	// Set makes the server's group exist with exactly these limits, live.
	// A memory limit below what is in use and cannot be reclaimed is fault.Precondition.
	Set(ctx context.Context, id string, want LimitSet) error
	// Freeze stops (true) or continues (false) all tasks; it returns when they have.
	Freeze(ctx context.Context, id string, frozen bool) error
	// Kill ends all tasks by SIGKILL, frozen ones too, and returns when none is left.
	Kill(ctx context.Context, id string) error
	// Usage reads the counters. fault.NotFound where the group does not exist.
	Usage(ctx context.Context, id string) (Usage, error)
	// Remove kills what is left and removes the group.
	Remove(ctx context.Context, id string) error
	// List names the servers that have a group.
	List(ctx context.Context) ([]GroupInfo, error)
}

// LimitSet is every limit of one server. Zero rates mean unlimited.
type LimitSet struct {
	CPU       CPU
	Memory    Memory
	Processes int64
	Disk      Disk   // rates only
	Major     uint32 // the device that the disk rates bind
	Minor     uint32
	IDs       IDRange // who may manage the delegated part (systemd inside)
}

// GroupInfo is one server's control group.
type GroupInfo struct {
	ID     string
	Frozen bool
	Tasks  int
}

// Usage is what a server has used. Counters only grow while the group lives.
type Usage struct {
	CPU          time.Duration
	Throttled    time.Duration
	MemoryUsed   int64 // bytes, page cache that can be dropped not counted
	MemoryCache  int64
	SwapUsed     int64
	OOMKills     int64
	Tasks        int64
	ReadBytes    int64
	WriteBytes   int64
	ReadOps      int64
	WriteOps     int64
	PressureCPU  float64 // share of the last 10 s in which some task waited, 0 … 1; 0 where the kernel has no PSI per group
	PressureMem  float64
	PressureDisk float64
}

// Networks keeps bridges, links, filters and shaping (package network).
type Networks interface {
	// SetNetwork makes the network exist on this host exactly as wanted, live.
	SetNetwork(ctx context.Context, want Network) error
	// RemoveNetwork removes it. Links still on it are fault.Precondition.
	RemoveNetwork(ctx context.Context, id string) error
	// Set makes the server's interfaces, filters, published ports and shaping exactly as
	// wanted, live. Interfaces are created, moved into the network namespace of process
	// pid and configured there (address, route, up, MTU, loopback up).
	Set(ctx context.Context, want ServerNetwork) error
	// Remove removes everything of a server.
	Remove(ctx context.Context, id string) error
	// Usage reads the counters per interface, as seen from the server.
	Usage(ctx context.Context, id string) (map[string]LinkUsage, error)
	// List describes what is there.
	List(ctx context.Context) (NetworkInventory, error)
}

// Network is an L2 segment on this host.
type Network struct {
	ID   string
	Name string
	CIDR netip.Prefix // the host's own address (gateway) is Gateway
	// Gateway is this host's address on the bridge.
	Gateway netip.Addr
	NAT     bool // masquerade what leaves for elsewhere
	VNI     uint32
	Peers   []netip.Addr // underlay addresses of the other hosts it spans; empty means no VXLAN
	MTU     int          // inside; 0 means chosen by the edge
}

// ServerNetwork is everything about one server's networking.
type ServerNetwork struct {
	ID   string
	Pid  int // a process in the server's network namespace; 0 means do not touch links, only rules
	NICs []Link
}

// Link is one interface, fully decided.
type Link struct {
	Name      string // inside: "eth0"
	NetworkID string
	MAC       string
	Address   netip.Prefix
	Gateway   netip.Addr // default route; invalid means none
	Ingress   int64      // bits per second towards the server, 0 unlimited
	Egress    int64
	Publish   []Publish
	Filtered  bool
	Allow     []Allow
}

// LinkUsage are one interface's counters, named from the server's side.
type LinkUsage struct {
	RxBytes, TxBytes, RxPackets, TxPackets, RxDropped, TxDropped int64
}

// NetworkInventory is what the network edge keeps on this host.
type NetworkInventory struct {
	Networks []string            // ids
	Servers  map[string][]string // server id → interface names inside
}

// Runtime runs a server's operating system (package oci). A second kind with a kernel of
// its own can stand behind the same interface: nothing here speaks of namespaces except Pid.
type Runtime interface {
	// Create prepares the server up to the point where its init would start, so that
	// networks can be attached. It returns the host's pid of the future init.
	Create(ctx context.Context, c Container) (pid int, err error)
	// Start lets init run. Starting what runs succeeds.
	Start(ctx context.Context, id string) error
	// Stop asks init to shut down cleanly (the signal its init understands) and returns at once.
	Stop(ctx context.Context, id string) error
	// Delete kills what is left and forgets the server.
	Delete(ctx context.Context, id string) error
	// List describes all servers that the runtime knows.
	List(ctx context.Context) ([]Running, error)
	// Wait returns when the server's init has ended (nil; or ErrRebooted if it ended to be
	// started again, which only the agent that started it is told), or ctx has (ctx's error).
	Wait(ctx context.Context, id string) error
}

// ErrRebooted is how Runtime.Wait says that a server rebooted itself.
var ErrRebooted = errors.New("the server asked to be started again")

// Container is what Runtime.Create needs to know.
type Container struct {
	ID       string
	Name     string
	Hostname string
	Rootfs   string // Attachment.Rootfs
	IDs      IDRange
	Init     []string // the image's own init or entry point; empty means find /sbin/init, else our own
	Env      []string
	Dir      string // working directory of Init; "" means /
}

// Running is a server as the runtime sees it.
type Running struct {
	ID      string
	Pid     int
	Status  RunStatus
	Started time.Time
}

// RunStatus is how far the runtime is with a server.
type RunStatus string

// The runtime's states.
const (
	RunCreated RunStatus = "created" // Create done, Start not
	RunRunning RunStatus = "running"
	RunStopped RunStatus = "stopped" // init ended; Delete is due
)

// Commands runs programs inside a running server (package oci too).
type Commands interface {
	// Exec runs argv in the server and returns its exit code; an error means it did not run.
	Exec(ctx context.Context, id string, cmd Command) (int, error)
	// Console joins the server's console until ctx ends or rw fails.
	Console(ctx context.Context, id string, rw io.ReadWriter) error
	// ConsoleLog opens what the console printed, oldest kept byte first; the log is bounded
	// and survives restarts of the agent.
	ConsoleLog(ctx context.Context, id string) (io.ReadCloser, error)
}

// Command is a program to run in a server.
type Command struct {
	Argv    []string
	Env     []string
	Dir     string
	User    string // "uid", "uid:gid" or a name of the server's /etc/passwd; "" means root
	TTY     bool
	Rows    uint16
	Columns uint16
	Resize  <-chan [2]uint16 // rows, columns
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer // unused with TTY
}

// Account is a user of a server.
type Account struct {
	UID, GID         uint32 // by the server's own numbers
	HostUID, HostGID uint32 // the same, by the host's
	Groups           []uint32
	Home             string
}

// Preparer writes the host's decisions into a server's root directory before a start:
// host name, resolver, time zone, machine id, first-boot data (package oci too). It opens
// every path beneath root, never through a link that leaves it.
type Preparer interface {
	Prepare(ctx context.Context, root string, p Preparation) error
}

// Preparation is what the server's files should say.
type Preparation struct {
	ID        string
	Hostname  string
	Timezone  string
	DNS       DNS
	FirstBoot FirstBoot // only at the first start
	First     bool      // first start: machine id, host keys and the like are made anew
	Links     []Link    // for /etc/hosts and cloud-init's network data
	Pid       int       // a process of the running server whose live host name is set too; 0 if it does not run
}

// Captures are the snapshots of this host, as far as servers need them (package snapshot).
// Find and Reserved are called while the manager decides: they answer from memory and never
// call back.
type Captures interface {
	// Find describes a complete snapshot; fault.NotFound where there is none.
	Find(id string) (Capture, error)
	// Keep takes the safety snapshot id of the server's disk, which is not attached, and
	// returns when it is complete. One of this id that is there is kept. It is called while
	// the server is at an operation.
	Keep(ctx context.Context, id string, r Record) error
	// Copy makes the server's disk, which is not attached, a writable copy of a snapshot
	// with at least size bytes, in one step (see snapshot.Disks).
	Copy(ctx context.Context, id, server string, size int64) error
	// Gone says that the server is being deleted: with remove its snapshots go too.
	Gone(ctx context.Context, server string, remove bool) error
	// Reserved is how much of the pool all snapshots may come to take, bytes.
	Reserved() int64
}

// Capture is a snapshot as a server is made from it.
type Capture struct {
	ID     string
	Server string // whose disk it was
	Name   string
	Size   int64 // of the disk, bytes
	Image  Image // of the server then
}
