package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
)

// The measured server, and how long every limit is loaded.
const (
	measuredHost   = "alpha"
	measuredServer = "debian-alpha"
	load           = 10 * time.Second
	tries          = 3 // a busy machine can't always give what was promised
)

const mebibyte = 1 << 20

// limits are what the configuration asks for now.
type limits struct {
	cores   float64
	memory  float64 // bytes
	disk    float64 // bytes
	egress  float64 // bits per second
	ingress float64
}

// best repeats a measurement until it is within its bounds, a few times at most: the
// machine's other work can take from a server, never give to it.
func (r *report) best(measure func() ([]measured, error)) error {
	var figures []measured
	for try := range tries {
		var err error
		if figures, err = measure(); err != nil {
			return err
		}
		good := true
		for _, m := range figures {
			good = good && m.within()
		}
		if good {
			break
		}
		if try < tries-1 {
			for _, m := range figures {
				r.say("(once more, the machine may have been busy: %.2f %% of %s)", 100*m.got/m.asked, m.what)
			}
		}
	}
	for _, m := range figures {
		r.show(m)
	}
	return nil
}

// during runs a script in the measured server and reads the agent's counters at both ends
// of ten seconds in its middle.
func (w *world) during(ctx context.Context, script string) (out string, first, last *reflejov1.ServerUsage, elapsed float64, err error) {
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := w.inside(ctx, measuredServer, script)
		done <- result{out, err}
	}()
	read := func() (*reflejov1.ServerUsage, time.Time) {
		usage, readErr := w.usage(ctx, measuredHost, measuredServer)
		if err == nil {
			err = readErr
		}
		return usage, time.Now()
	}
	pause(ctx, time.Second)
	first, from := read()
	pause(ctx, load)
	last, to := read()
	r := <-done
	if err == nil {
		err = r.err
	}
	return r.out, first, last, to.Sub(from).Seconds(), err
}

// pause waits, or less if ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

var times = regexp.MustCompile(`(\d+)m([\d.]+)s (\d+)m([\d.]+)s`)

// cpu loads more processors than the server has and counts the time it gets.
func (w *world) cpu(ctx context.Context, l limits) ([]measured, error) {
	const script = `for i in 1 2; do timeout 12 sh -c 'while :; do :; done' & done; a=$(date +%s.%N); wait; b=$(date +%s.%N); times; echo $a $b`
	out, first, last, elapsed, err := w.during(ctx, script)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(out, "\n")
	if len(lines) != 3 { // the shell's own times, its children's, the span
		return nil, fmt.Errorf("measure CPU: %q is not what the shell prints", out)
	}
	used, span := times.FindStringSubmatch(lines[1]), strings.Fields(lines[2])
	if used == nil || len(span) != 2 {
		return nil, fmt.Errorf("measure CPU: %q is not what the shell prints", out)
	}
	inside := (60*number(used[1]) + number(used[2]) + 60*number(used[3]) + number(used[4])) / (number(span[1]) - number(span[0]))
	outside := (last.GetCpu().AsDuration() - first.GetCpu().AsDuration()).Seconds() / elapsed
	return []measured{
		{"CPU, inside", "cores", l.cores, inside, 0.98, 1.01, "two busy loops, the shell's times"},
		{"CPU, outside", "cores", l.cores, outside, 0.99, 1.01, "the agent's counter"},
	}, nil
}

// number reads a number that a regular expression found.
func number(text string) float64 {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return math.NaN() // no bounds hold it
	}
	return v
}

// hog allocates and touches memory again and again for some seconds.
func hog(bytes float64, seconds int) string {
	return fmt.Sprintf(`perl -e 'my $n = %d; my $s = "x" x $n; my $end = time + %d; while (time < $end) { for (my $i = 0; $i < $n; $i += 4096) { substr($s, $i, 1) = "y" } }'; echo $?`, int64(bytes), seconds)
}

// memory fills the server's memory to 99 % for ten seconds, then asks for more than there is.
func (w *world) memory(ctx context.Context, r *report, l limits) error {
	before, err := w.usage(ctx, measuredHost, measuredServer)
	if err != nil {
		return err
	}
	// A first, smaller fill shows what the program and the kernel take besides.
	size := 0.9*l.memory - float64(before.GetMemoryUsed())
	reading, fits, err := w.fill(ctx, size, 2)
	if err != nil {
		return err
	}
	rest := reading - size
	for _, share := range []float64{0.996, 0.994, 0.992, 0.99, 0.988, 0.986} { // as much as the kernel can serve
		if reading, fits, err = w.fill(ctx, share*l.memory-rest, 12); err != nil {
			return err
		}
		if fits {
			break
		}
	}
	if before, err = w.usage(ctx, measuredHost, measuredServer); err != nil {
		return err
	}
	r.check(fits, "a program fills it and goes on for 10 s")
	r.show(measured{"memory, filled", "MiB", l.memory / mebibyte, reading / mebibyte, 0.99, 1, "the agent's counter, held 10 s"})
	out, err := w.inside(ctx, measuredServer, hog(1.2*l.memory, 1))
	if err != nil {
		return err
	}
	after, err := w.usage(ctx, measuredHost, measuredServer)
	if err != nil {
		return err
	}
	r.check(strings.HasSuffix(out, "137") && after.GetOomKills() > before.GetOomKills(),
		"a program that wants 120 %% of it is killed (exit code %s), inside (%d kills counted)", out[strings.LastIndexByte(out, '\n')+1:], after.GetOomKills()-before.GetOomKills())
	return nil
}

// fill returns what the agent counts while size bytes are in use for some seconds, and
// whether they fit: otherwise the program was killed.
func (w *world) fill(ctx context.Context, size float64, seconds int) (reading float64, fits bool, err error) {
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := w.inside(ctx, measuredServer, hog(size, seconds))
		done <- result{out, err}
	}()
	for {
		select {
		case r := <-done:
			return reading, r.err == nil && r.out == "0", r.err
		case <-time.After(200 * time.Millisecond):
			usage, err := w.usage(ctx, measuredHost, measuredServer)
			if err != nil {
				return 0, false, err
			}
			reading = max(reading, float64(usage.GetMemoryUsed()))
		}
	}
}

var ddResult = regexp.MustCompile(`(\d+) bytes .* copied, ([\d.]+) s`)

// disk writes and reads past the page cache for ten seconds each.
func (w *world) disk(ctx context.Context, writeBPS, readIOPS float64) ([]measured, error) {
	var figures []measured
	out, first, last, elapsed, err := w.during(ctx, fmt.Sprintf("dd if=/dev/zero of=/var/tmp/demo bs=1M oflag=direct count=%d 2>&1", int64(writeBPS/mebibyte*12)))
	if err != nil {
		return nil, err
	}
	rate, err := ddRate(out)
	if err != nil {
		return nil, err
	}
	counted := float64(last.GetWriteBytes()-first.GetWriteBytes()) / elapsed
	figures = append(figures,
		measured{"disk write, inside", "MiB/s", writeBPS / mebibyte, rate / mebibyte, 0.97, 1.03, "dd, direct"},
		measured{"disk write, outside", "MiB/s", writeBPS / mebibyte, counted / mebibyte, 0.97, 1.03, "the agent's counter"})
	out, err = w.inside(ctx, measuredServer, fmt.Sprintf("dd if=/var/tmp/demo of=/dev/null bs=4k iflag=direct count=%d 2>&1", int64(readIOPS*load.Seconds())))
	if err != nil {
		return nil, err
	}
	if rate, err = ddRate(out); err != nil {
		return nil, err
	}
	return append(figures, measured{"disk reads, inside", "/s", readIOPS, rate / 4096, 0.97, 1.03, "dd, direct, 4 KiB"}), nil
}

// ddRate reads bytes per second from what dd prints.
func ddRate(out string) (float64, error) {
	f := ddResult.FindStringSubmatch(out)
	if f == nil {
		return 0, fmt.Errorf("measure disk: %q is not what dd prints", out)
	}
	return number(f[1]) / number(f[2]), nil
}

// network sends for ten seconds each way through the published port.
func (w *world) network(ctx context.Context, l limits) (figures []measured, err error) {
	for _, way := range []struct {
		what  string
		asked float64
		args  []string
	}{{"network in", l.ingress, nil}, {"network out", l.egress, []string{"-R"}}} {
		if way.asked == 0 {
			continue
		}
		if _, err := w.inside(ctx, measuredServer, "iperf3 -s -1 -D"); err != nil {
			return nil, err
		}
		args := append([]string{"iperf3", "-J", "-O", "1", "-t", "10", "-p", "5201", "-c", testbed.Address(measuredHost).String()}, way.args...)
		out, err := w.retry(ctx, args)
		if err != nil {
			return nil, err
		}
		var result struct {
			End struct {
				Received struct {
					Rate float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			}
		}
		if err := json.Unmarshal([]byte(out), &result); err != nil {
			return nil, fmt.Errorf("read iperf3's result: %w", err)
		}
		figures = append(figures, measured{way.what + ", outside", "Mbit/s", way.asked / 1e6, result.End.Received.Rate / 1e6, 0.94, 0.96, "iperf3 goodput through the published port"})
	}
	return figures, nil
}

// retry runs a command until it works: iperf3's server needs a moment to listen.
func (w *world) retry(ctx context.Context, argv []string) (out string, err error) {
	for range 20 {
		if out, err = w.command(ctx, argv...); err == nil {
			return out, nil
		}
		pause(ctx, 100*time.Millisecond)
	}
	return out, err
}

// processes starts programs until the server may not have more.
func (w *world) processes(ctx context.Context, most float64) (measured, error) {
	script := fmt.Sprintf(`(n=0; while [ $n -lt %d ]; do sleep 4 & n=$((n+1)); done) >/dev/null 2>&1; sleep 4`, int64(2*most))
	done := make(chan error, 1)
	go func() {
		_, err := w.inside(ctx, measuredServer, script)
		done <- err
	}()
	var tasks int64
	for {
		select {
		case <-done: // the last sleep may have failed: there was no room for it
			return measured{"processes, outside", "", most, float64(tasks), 0.97, 1, "the agent's counter"}, nil
		case <-time.After(100 * time.Millisecond):
			usage, err := w.usage(ctx, measuredHost, measuredServer)
			if err != nil {
				return measured{}, err
			}
			tasks = max(tasks, usage.GetTasks())
		}
	}
}

// seen shows what programs inside see of the limits.
func (w *world) seen(ctx context.Context, r *report, l limits) error {
	out, err := w.inside(ctx, measuredServer, `nproc; free -b | awk '/^Mem:/ {print $2}'; df -B1 --output=size / | tail -1`)
	if err != nil {
		return err
	}
	f := strings.Fields(out)
	if len(f) != 3 {
		return fmt.Errorf("look inside: %q is not three numbers", out)
	}
	r.show(measured{"nproc, inside", "", math.Ceil(l.cores), number(f[0]), 1, 1, "a part of a core counts as one"})
	r.show(measured{"free, inside", "MiB", l.memory / mebibyte, number(f[1]) / mebibyte, 0.99, 1, ""})
	r.show(measured{"df, inside", "GiB", l.disk / (1 << 30), number(f[2]) / (1 << 30), 0.96, 1, "the rest is the file system's own"})
	return nil
}
