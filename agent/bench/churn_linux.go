package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// churn is V13: many short-lived servers, more of them at once than the host has memory
// for. What does not fit has to be refused, with the amounts, and the host must not run
// out of memory.
func (r *run) churn(ctx context.Context) (rows []Row, err error) {
	d, err := r.host.describe(ctx)
	if err != nil {
		return nil, err
	}
	oom, err := openKernelLog()
	if err != nil {
		return nil, err
	}
	defer oom.close()
	c := churner{run: r, total: int64(r.pick(1000, 100)), workers: 12}
	// Two servers less than there are workers fit.
	c.memory = d.GetFree().GetMemoryBytes() / int64(c.workers-2) / mebibyte * mebibyte
	before, err := r.host.tb.Inventory()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	err = together(c.workers, c.workers, func(worker int) error { return c.work(ctx, worker) })
	took := time.Since(began)
	if err != nil {
		return nil, err
	}
	after, err := r.host.describe(ctx)
	if err != nil {
		return nil, err
	}
	left, err := r.host.tb.Inventory()
	if err != nil {
		return nil, err
	}
	kills, err := oom.count()
	if err != nil {
		return nil, err
	}
	return []Row{
		{What: fmt.Sprintf("%d servers created and deleted", c.total), Unit: "servers/s", Values: []float64{float64(c.total) / took.Seconds()}},
		{What: "creates that failed", Values: []float64{float64(c.failed.Load())}, Target: Between(0, 0)},
		{What: "over-asks refused, with the amounts", Values: []float64{float64(c.refused.Load())}, Target: AtLeast(1), Note: fmt.Sprintf("%d workers, memory for %d servers", c.workers, c.workers-2)},
		{What: "refusals that do not say how much is free", Values: []float64{float64(c.silent.Load())}, Target: Between(0, 0)},
		{What: "host out-of-memory kills", Values: []float64{kills}, Target: Between(0, 0)},
		{What: "promised afterwards", Unit: "MiB", Values: []float64{float64(after.GetPromised().GetMemoryBytes()) / mebibyte}, Target: Between(0, 0)},
		{What: "things left on the kernel and on disk", Values: []float64{leftovers(before, left)}, Target: Between(0, 0), Note: "groups, links, mounts, loop devices, namespaces, rules, files"},
	}, nil
}

// churner counts what becomes of its requests.
type churner struct {
	run     *run
	total   int64
	workers int
	memory  int64 // of each server

	begun, failed, refused, silent atomic.Int64
}

// work makes and removes servers until there were enough.
func (c *churner) work(ctx context.Context, worker int) error {
	for {
		n := c.begun.Add(1)
		if n > c.total {
			return nil
		}
		s := c.run.host.tinySpec(fmt.Sprintf("v13-%d", n))
		s.Memory.Max = c.memory
		if err := c.createWhenFits(ctx, s); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			c.failed.Add(1)
			fmt.Fprintf(c.run.cfg.Log, "%v; ", err)
		}
		if err := c.run.host.removeAll(ctx, s); err != nil {
			return err
		}
	}
}

// createWhenFits asks until there is room.
func (c *churner) createWhenFits(ctx context.Context, s *reflejov1.ServerSpec) error {
	for {
		err := c.run.host.create(ctx, s)
		if connect.CodeOf(err) != connect.CodeResourceExhausted || err == nil {
			return err
		}
		c.refused.Add(1)
		if !strings.Contains(err.Error(), "memory") || !strings.ContainsAny(err.Error(), "0123456789") {
			c.silent.Add(1)
		}
		pause(ctx, 20*time.Millisecond)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// leftovers counts what an inventory has that an earlier one had not.
func leftovers(before, after []string) (n float64) {
	for _, line := range after {
		if !slices.Contains(before, line) {
			n++
		}
	}
	return n
}

// kernelLog is /dev/kmsg from when it was opened on.
type kernelLog struct{ fd int }

func openKernelLog() (*kernelLog, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open kernel log: %w", err)
	}
	if _, err := unix.Seek(fd, 0, io.SeekEnd); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open kernel log: %w", err)
	}
	return &kernelLog{fd}, nil
}

func (k *kernelLog) close() { unix.Close(k.fd) }

// count is how often the kernel killed for want of memory of the whole machine. Kills for
// a group's limit are the limits' work and not counted.
func (k *kernelLog) count() (n float64, err error) {
	buf := make([]byte, 16<<10)
	for { // a record each
		size, err := unix.Read(k.fd, buf)
		switch {
		case errors.Is(err, unix.EPIPE): // overwritten before we read it
			continue
		case errors.Is(err, unix.EAGAIN):
			return n, nil
		case err != nil:
			return n, fmt.Errorf("read kernel log: %w", err)
		}
		if strings.Contains(string(buf[:size]), "global_oom") {
			n++
		}
	}
}
