package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed/inventory"
)

const (
	readyTimeout = 60 * time.Second // from an agent's start to its first answer
	readyPoll    = 20 * time.Millisecond
	logTail      = 4 << 10 // of an agent's log, in the error about its failure
)

// Host is one host of a bed.
type Host struct {
	bed  *Bed
	name string
}

// Name is the host's name.
func (h *Host) Name() string { return h.name }

// Netns is the path of the host's network namespace.
func (h *Host) Netns() string { return h.bed.n.netns(h.name) }

// Mountns is the path of the host's mount namespace.
func (h *Host) Mountns() string { return h.bed.n.mountns(h.name) }

// Cgroup is the parent of the host's control groups, below each hierarchy's root.
func (h *Host) Cgroup() string { return h.bed.n.cgroup(h.name) }

// Dir is the host's directory.
func (h *Host) Dir() string { return h.bed.n.hostPath(h.name) }

// LogFile is what the host's agent prints.
func (h *Host) LogFile() string { return h.bed.n.logFile(h.name) }

func (h *Host) agentFile() string  { return filepath.Join(h.Dir(), "agent.pid") }
func (h *Host) downFile() string   { return filepath.Join(h.Dir(), "down") }
func (h *Host) configFile() string { return filepath.Join(h.Dir(), "agent.hcl") }

// runDir is what a boot forgets. It is outside of the bed's directory, as the path to a
// server's root must be open to the server's users, and a checkout may be in a closed home.
func (h *Host) runDir() string { return h.bed.n.runDir(h.name) }

func (h *Host) belonging() belonging {
	return belonging{netns: namespaceID(h.Netns()), mountns: namespaceID(h.Mountns()), cgroup: "/" + h.Cgroup()}
}

// AgentPID is the process id of the running agent, 0 if it does not run.
func (h *Host) AgentPID() int {
	if p, ok := loadProcess(h.agentFile()); ok {
		return p.PID
	}
	return 0
}

// Start boots the host if it is down, starts its agent if that does not run, and returns
// when the agent answers.
func (h *Host) Start(ctx context.Context) error {
	unlock, err := h.bed.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := h.boot(ctx); err != nil {
		return err
	}
	return h.waitReady(ctx)
}

// KillAgent ends the agent, and nothing else, by SIGKILL.
func (h *Host) KillAgent(ctx context.Context) error {
	p, ok := loadProcess(h.agentFile())
	if !ok {
		return fmt.Errorf("kill agent of %s: it does not run", h.name)
	}
	if err := p.kill(); err != nil {
		return err
	}
	return waitGone(ctx, p)
}

// Kill ends all that runs on the host at once. Its network stays: the kernel answers for
// it, with resets.
func (h *Host) Kill(ctx context.Context) error {
	unlock, err := h.bed.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return h.kill(ctx)
}

// PowerOff cuts the host from the network without a word, then ends all that runs on it.
func (h *Host) PowerOff(ctx context.Context) error {
	unlock, err := h.bed.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := h.bed.n.unplug(h.name); err != nil {
		return err
	}
	return h.kill(ctx)
}

func (h *Host) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	if err := os.WriteFile(h.downFile(), nil, 0o644); err != nil {
		return err
	}
	loops, err := h.loops()
	if err != nil {
		return err
	}
	if err := h.belonging().killAll(ctx); err != nil {
		return err
	}
	// Nobody is left in it: without its pin the mount namespace goes, and with it its mounts.
	if err := unpin(h.Mountns()); err != nil {
		return err
	}
	if err := loops.detach(ctx); err != nil {
		return err
	}
	return removeGroups(ctx, h.Cgroup())
}

// destroy ends the host and removes its namespaces.
func (h *Host) destroy(ctx context.Context) error {
	if err := os.MkdirAll(h.Dir(), 0o755); err != nil {
		return err
	}
	if err := h.kill(ctx); err != nil {
		return err
	}
	if err := os.Remove(h.runDir()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return dropNetns(h.Netns())
}

// boot makes the host as a boot would leave it, unless it is up, and starts the agent.
func (h *Host) boot(ctx context.Context) error {
	if _, ok := loadProcess(h.agentFile()); ok {
		return nil
	}
	if _, err := os.Stat(h.downFile()); err == nil {
		if err := h.kill(ctx); err != nil { // what a killed kill left
			return err
		}
		if err := dropNetns(h.Netns()); err != nil {
			return err
		}
	}
	if err := h.bed.n.upPlace(h.name); err != nil {
		return err
	}
	cuts, err := h.bed.loadCuts()
	if err != nil {
		return err
	}
	if err := h.bed.setCuts(cuts); err != nil {
		return err
	}
	if err := makeMountns(h.Mountns(), h.bed.n.pinDir(), h.runDir()); err != nil {
		return err
	}
	if err := os.Remove(h.downFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return h.startAgent()
}

// startAgent starts the agent in the host's namespaces. It outlives this process.
func (h *Host) startAgent() error {
	log, err := os.OpenFile(h.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	// nsenter, as `ip netns exec` would mount another /sys and hide the control groups.
	cmd := exec.Command("nsenter", "--net="+h.Netns(), "--mount="+h.Mountns(), "--",
		filepath.Join(h.bed.n.Bin, "reflejo"), "agent", "-config", h.configFile())
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), h.bed.n.AgentEnv...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start agent of %s: %w", h.name, err)
	}
	p, err := readProcess(cmd.Process.Pid)
	go cmd.Wait() // so that it does not stay as a zombie while this process lives
	if err != nil {
		return fmt.Errorf("start agent of %s: it ended at once: %s", h.name, h.logEnd())
	}
	return p.save(h.agentFile())
}

// waitReady returns when the agent answers, or with the end of its log when it has ended.
func (h *Host) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	client, err := h.bed.Client(h.name)
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		_, err := client.Hosts.GetHost(ctx, connect.NewRequest(&reflejov1.GetHostRequest{}))
		if err == nil {
			return nil
		}
		if h.AgentPID() == 0 {
			return fmt.Errorf("start agent of %s: it has ended:\n%s", h.name, h.logEnd())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start agent of %s: no answer in %v: %w\n%s", h.name, readyTimeout, err, h.logEnd())
		case <-time.After(readyPoll):
		}
	}
}

// logEnd is the end of the agent's log.
func (h *Host) logEnd() string {
	f, err := os.Open(h.LogFile())
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > logTail {
		_, _ = f.Seek(-logTail, io.SeekEnd)
	}
	text, _ := io.ReadAll(io.LimitReader(f, logTail))
	return string(text)
}

func waitGone(ctx context.Context, p process) error {
	for p.alive() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of process %d: %w", p.PID, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// Inventory lists what the host's agent keeps on the kernel and on disk.
func (h *Host) Inventory() (found inventory.Inventory, err error) {
	mountns := h.Mountns()
	if !isPinned(mountns) { // the host is down
		mountns = ""
	}
	err = Inside(h.Netns(), mountns, func() error {
		found, err = inventory.Take(inventory.Scope{Dirs: []string{h.Dir(), h.runDir()}, Cgroup: h.Cgroup(), Namespaces: true})
		return err
	})
	// The parents are the agent's own: each is made when it is first needed, and stays.
	return slices.DeleteFunc(found, func(line string) bool {
		return strings.HasPrefix(line, "cgroup ") && strings.HasSuffix(line, "/"+h.Cgroup())
	}), err
}
