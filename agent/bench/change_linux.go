package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// limitChange is one limit that is changed to and fro.
type limitChange struct {
	name   string
	files  []string // below /sys/fs/cgroup, v1 and v2: the first that is there shows the effect
	change func(s *reflejov1.ServerSpec, up bool)
	lxd    [2]string // its configuration key and, by up, "small|large" values
}

// choose is large where up is set.
func choose(up bool, small, large int64) int64 {
	if up {
		return large
	}
	return small
}

// changes are the limits of V8. In file names % is the server's group.
func changes() []limitChange {
	return []limitChange{
		{"CPU quota", []string{"cpu/%/cpu.cfs_quota_us", "%/cpu.max"},
			func(s *reflejov1.ServerSpec, up bool) { s.Cpu.MilliCores = choose(up, 500, 1500) }, [2]string{"limits.cpu.allowance", "50ms/100ms|150ms/100ms"}},
		{"CPU weight", []string{"cpu/%/cpu.shares", "%/cpu.weight"},
			func(s *reflejov1.ServerSpec, up bool) { s.Cpu.Weight = choose(up, 100, 300) }, [2]string{"limits.cpu.priority", "1|9"}},
		{"memory", []string{"memory/%/memory.limit_in_bytes", "%/memory.max"},
			func(s *reflejov1.ServerSpec, up bool) { s.Memory.Max = choose(up, 64, 128) * mebibyte }, [2]string{"limits.memory", "64MiB|128MiB"}},
		{"processes", []string{"pids/%/pids.max", "%/pids.max"},
			func(s *reflejov1.ServerSpec, up bool) { s.Processes = choose(up, 500, 1000) }, [2]string{"limits.processes", "500|1000"}},
		{"disk rate", []string{"blkio/%/blkio.throttle.write_bps_device", "%/io.max"},
			func(s *reflejov1.ServerSpec, up bool) { s.Disk.WriteBps = choose(up, 20, 40) * mebibyte }, [2]string{}},
		{"bandwidth", nil,
			func(s *reflejov1.ServerSpec, up bool) { s.Network["eth0"].Egress = choose(up, 50, 100) * 1e6 }, [2]string{}},
	}
}

// change is V8: every limit of a running server, until it is in the kernel and until the
// API says that nothing is left to do.
func (r *run) change(ctx context.Context) (rows []Row, err error) {
	s := r.host.tinySpec("v8")
	s.Network = map[string]*reflejov1.Nic{"eth0": {Egress: 1e9}}
	s.Processes, s.Memory.Max = 500, 64*mebibyte
	defer func() { err = errors.Join(err, r.host.removeAll(ctx, s)) }()
	if err := r.host.create(ctx, s); err != nil {
		return nil, err
	}
	boot, err := r.host.boots(ctx, s)
	if err != nil {
		return nil, err
	}
	if r.lxd != nil {
		if err := r.lxd.create(ctx, "v8", "tiny", nil); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, r.lxd.removeAll(ctx, "v8")) }()
	}
	for _, c := range changes() {
		more, err := r.changeOne(ctx, s, c)
		if err != nil {
			return rows, fmt.Errorf("change %s: %w", c.name, err)
		}
		rows = append(rows, more...)
	}
	again, err := r.host.boots(ctx, s)
	if err != nil {
		return rows, err
	}
	restarts := Row{What: "restarts for all of them", Values: []float64{0}, Target: Between(0, 0)}
	if boot != again {
		restarts.Values[0] = 1
	}
	return append(rows, restarts), nil
}

// boots tells one run of a server from another: when its first process began.
func (h *host) boots(ctx context.Context, s *reflejov1.ServerSpec) (string, error) {
	return h.sh(ctx, s.GetId(), "cut -d' ' -f22 /proc/1/stat")
}

// changeOne changes a limit to and fro, in turns with LXD.
func (r *run) changeOne(ctx context.Context, s *reflejov1.ServerSpec, c limitChange) ([]Row, error) {
	file := r.host.groupFile(s.GetId(), c.files)
	var kernel, settled, lxd []float64
	for i := range r.pick(20, 6) + 1 {
		up := i%2 == 1
		c.change(s, up)
		effect := watchFile(file)
		began := time.Now()
		if err := r.host.update(ctx, s); err != nil {
			return nil, errors.Join(err, effect.stop())
		}
		took := time.Since(began)
		err := effect.stop()
		if i == 0 { // it may have been so already
			continue
		}
		if err != nil {
			return nil, err
		}
		settled = append(settled, ms(took))
		if file != "" {
			kernel = append(kernel, ms(effect.at.Sub(began)))
		}
		if r.lxd != nil && c.lxd[0] != "" {
			took, err := r.lxd.change(ctx, "v8", c.lxd, up)
			if err != nil {
				return nil, err
			}
			lxd = append(lxd, ms(took))
		}
	}
	var rows []Row
	if file != "" {
		rows = append(rows, Row{What: c.name + ": request → in the kernel", Unit: "ms", Values: kernel, Target: AtMost(5)})
	}
	rows = append(rows, Row{What: c.name + ": request → settled at the API", Unit: "ms", Values: settled})
	if file == "" {
		rows[0].Target = AtMost(5)
	}
	if len(lxd) > 0 {
		rows = append(rows, Row{What: c.name + ": LXD, request → answer", Unit: "ms", Values: lxd}, Row{What: c.name + ": settled ÷ LXD", Unit: "×", Values: ratios(settled, lxd)})
	}
	return rows, nil
}

// change sets one key of a server's configuration.
func (l *lxd) change(ctx context.Context, name string, key [2]string, up bool) (time.Duration, error) {
	small, large, _ := strings.Cut(key[1], "|")
	value := small
	if up {
		value = large
	}
	began := time.Now()
	err := l.call(ctx, http.MethodPatch, "/1.0/instances/"+l.prefix+name, map[string]any{"config": map[string]string{key[0]: value}}, nil)
	return time.Since(began), err
}

// groupFile is the first of the files of a server's control group that is there, "" if none is.
func (h *host) groupFile(id string, files []string) string {
	for _, f := range files {
		path := filepath.Join("/sys/fs/cgroup", strings.Replace(f, "%", h.tb.Cgroup()+"/"+id, 1))
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// fileWatch reads a file over and over until it says something else.
type fileWatch struct {
	at   time.Time // of the change
	quit chan struct{}
	done chan error
}

func watchFile(path string) *fileWatch {
	w := &fileWatch{quit: make(chan struct{}), done: make(chan error, 1)}
	if path == "" {
		w.done <- nil
		return w
	}
	before, err := os.ReadFile(path)
	if err != nil {
		w.done <- err
		return w
	}
	go func() {
		for last := false; ; {
			now, err := os.ReadFile(path)
			if err != nil || string(now) != string(before) {
				w.at = time.Now()
				w.done <- err
				return
			}
			if last {
				w.done <- fmt.Errorf("%s is still %q", path, before)
				return
			}
			select {
			case <-w.quit:
				last = true // it may have changed since it was read
			case <-time.After(100 * time.Microsecond):
			}
		}
	}()
	return w
}

// stop returns nil if the file has changed.
func (w *fileWatch) stop() error {
	close(w.quit)
	return <-w.done
}
