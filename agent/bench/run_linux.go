package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Config says what to run.
type Config struct {
	Name  string    // of the test host, as in testbed.Config; "" means "bench"
	Bin   string    // directory with reflejo and terraform-provider-reflejo
	Dir   string    // of the test host; removed at the end
	Only  []string  // ids of the benchmarks; empty means all
	Quick bool      // fewer rounds, shorter loads, smaller numbers: a look, no proof
	NoLXD bool      // leave LXD out where it is installed
	Log   io.Writer // progress
}

// benchmark measures the figures of one target.
type benchmark struct {
	id     string
	run    func(*run, context.Context) ([]Row, error)
	lxd    bool // LXD takes part
	debian bool // it boots Debian
}

// benchmarks are run in this order.
func benchmarks() []benchmark {
	return []benchmark{
		{id: "V1", run: (*run).create, lxd: true},
		{id: "V2", run: (*run).boot, lxd: true, debian: true},
		{id: "V3", run: (*run).burst, lxd: true},
		{id: "V4", run: (*run).gap, lxd: true},
		{id: "V6", run: (*run).restore, debian: true},
		{id: "V7", run: (*run).accuracy, debian: true},
		{id: "V8", run: (*run).change, lxd: true},
		{id: "V9", run: (*run).disk, debian: true},
		{id: "V10", run: (*run).size},
		{id: "V11", run: (*run).adopt},
		{id: "V12", run: (*run).move},
		{id: "V13", run: (*run).churn},
	}
}

func (b benchmark) wanted(only []string) bool { return len(only) == 0 || slices.Contains(only, b.id) }

// IDs are the benchmarks that there are.
func IDs() []string {
	var ids []string
	for _, b := range benchmarks() {
		ids = append(ids, b.id)
	}
	return ids
}

// limit bounds one benchmark: what takes longer is stuck.
const limit = 20 * time.Minute

// run is one run of the benchmarks.
type run struct {
	cfg  Config
	host *host
	lxd  *lxd // nil: not installed, or not wanted
}

// Run measures. It goes on after a benchmark that could not be measured, which the report
// names; the error is about the test host, or about ctx. Everything it made is removed,
// also when ctx ends.
func Run(ctx context.Context, cfg Config) (report Report, err error) {
	for _, dir := range []*string{&cfg.Dir, &cfg.Bin} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return report, fmt.Errorf("find directory: %w", err)
		}
	}
	for _, id := range cfg.Only {
		if !slices.Contains(IDs(), id) {
			return Report{}, fmt.Errorf("benchmark %q is unknown: there are %s", id, strings.Join(IDs(), ", "))
		}
	}
	if cfg.Name == "" {
		cfg.Name = "bench"
	}
	r := &run{cfg: cfg}
	before := loadAverage()
	done := r.step("start a test host")
	if r.host, err = newHost(ctx, cfg); err != nil {
		return Report{}, err
	}
	done(nil)
	defer func() { err = errors.Join(err, r.host.down(context.WithoutCancel(ctx))) }()
	if err := r.startLXD(ctx); err != nil {
		return Report{}, err
	}
	defer func() {
		if r.lxd != nil {
			err = errors.Join(err, r.lxd.stop())
		}
	}()
	for _, b := range benchmarks() {
		if !b.wanted(cfg.Only) {
			continue
		}
		done := r.step(b.id)
		limited, cancel := context.WithTimeout(ctx, limit)
		rows, err := b.run(r, limited)
		cancel()
		done(err)
		for i := range rows {
			rows[i].ID = b.id
		}
		report.Rows = append(report.Rows, rows...)
		if ctx.Err() != nil {
			return report, ctx.Err()
		}
		if err != nil {
			report.Failed = append(report.Failed, Failure{b.id, err})
		}
	}
	if report.Machine, err = r.machine(ctx); err == nil {
		report.Machine.Load = fmt.Sprintf("%s before, %s after", before, loadAverage())
	}
	return report, err
}

func (r *run) startLXD(ctx context.Context) error {
	needed := slices.ContainsFunc(benchmarks(), func(b benchmark) bool { return b.lxd && b.wanted(r.cfg.Only) })
	if r.cfg.NoLXD || !needed || !lxdInstalled() {
		return nil
	}
	done := r.step("start LXD, import the same images")
	l, err := newLXD(ctx, r.cfg.Dir+"-lxd", r.host.images)
	done(err)
	r.lxd = l
	return err
}

// restartLXD replaces a daemon that does not answer any more.
func (r *run) restartLXD(ctx context.Context) error {
	broken := r.lxd
	r.lxd = nil
	return errors.Join(broken.stop(), r.startLXD(ctx))
}

// step says what is done and how it ended.
func (r *run) step(what string) (done func(error)) {
	began := time.Now()
	fmt.Fprintf(r.cfg.Log, "%s … ", what)
	return func(err error) {
		result := "done"
		if err != nil {
			result = err.Error()
		}
		fmt.Fprintf(r.cfg.Log, "%s (%.1f s)\n", result, time.Since(began).Seconds())
	}
}

// pick is n, or in a quick run few.
func (r *run) pick(n, few int) int {
	if r.cfg.Quick {
		return few
	}
	return n
}

// load is for how long a limit is measured.
func (r *run) load() time.Duration {
	if r.cfg.Quick {
		return 3 * time.Second
	}
	return 10 * time.Second
}

// loadAverage is that of the last minute.
func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

// pause waits, or less if ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// ms is a duration as a value.
func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
