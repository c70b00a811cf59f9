package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
)

// result is what a program in a server left.
type result struct {
	out string
	err error
}

// background runs a script in a server.
func (h *host) background(ctx context.Context, id, script string) <-chan result {
	done := make(chan result, 1)
	go func() {
		out, err := h.sh(ctx, id, script)
		done <- result{out, err}
	}()
	return done
}

// burn keeps two processors busy in a server for d.
func (h *host) burn(ctx context.Context, id string, d time.Duration) <-chan result {
	s := int(d.Seconds())
	return h.background(ctx, id, fmt.Sprintf(`for i in 1 2; do timeout %d sh -c 'while :; do :; done' & done; wait; echo`, s))
}

// cores reads how many cores servers use, over a span of d in the middle of their load.
func (h *host) cores(ctx context.Context, d time.Duration, ids ...string) ([]float64, error) {
	pause(ctx, time.Second) // for the load to begin
	type reading struct {
		used time.Duration
		at   time.Time
	}
	read := func() ([]reading, error) {
		var all []reading
		for _, id := range ids {
			before := time.Now()
			u, err := h.usage(ctx, id)
			if err != nil {
				return nil, err
			}
			all = append(all, reading{u.GetCpu().AsDuration(), before.Add(time.Since(before) / 2)})
		}
		return all, nil
	}
	first, err := read()
	if err != nil {
		return nil, err
	}
	pause(ctx, d)
	last, err := read()
	if err != nil {
		return nil, err
	}
	var used []float64
	for i := range ids {
		used = append(used, (last[i].used-first[i].used).Seconds()/last[i].at.Sub(first[i].at).Seconds())
	}
	return used, nil
}

// hog fills memory and goes on touching it for some seconds.
func hog(bytes int64, d time.Duration) string {
	return fmt.Sprintf(`perl -e 'my $n = %d; my $s = "x" x $n; my $end = time + %d; while (time < $end) { for (my $i = 0; $i < $n; $i += 4096) { substr($s, $i, 1) = "y" } }'; echo $?`, bytes, int(d.Seconds()))
}

// fill returns how much of a server's memory is in use while a program holds that many
// bytes, and whether the program lived.
func (h *host) fill(ctx context.Context, id string, bytes int64, d time.Duration) (most int64, lived bool, err error) {
	done := h.background(ctx, id, hog(bytes, d))
	for {
		select {
		case r := <-done:
			return most, strings.HasSuffix(r.out, "0"), r.err
		case <-time.After(200 * time.Millisecond):
			u, err := h.usage(ctx, id)
			if err != nil {
				return 0, false, err
			}
			most = max(most, u.GetMemoryUsed())
		}
	}
}

var ddResult = regexp.MustCompile(`(\d+) bytes .* copied, ([\d.]+) s`)

// dd runs dd in a server and returns bytes per second.
func (h *host) dd(ctx context.Context, id, args string) (float64, error) {
	out, err := h.sh(ctx, id, "LC_ALL=C dd "+args+" 2>&1")
	if err != nil {
		return 0, err
	}
	f := ddResult.FindStringSubmatch(out)
	if f == nil {
		return 0, fmt.Errorf("read what dd prints: %q", out)
	}
	bytes, err1 := strconv.ParseFloat(f[1], 64)
	seconds, err2 := strconv.ParseFloat(f[2], 64)
	if err1 != nil || err2 != nil || seconds == 0 {
		return 0, fmt.Errorf("read what dd prints: %q", out)
	}
	return bytes / seconds, nil
}

// goodput sends for d between the operator and a server through its published port, and
// returns the payload's bits per second; out is from the server.
func (h *host) goodput(ctx context.Context, id string, port uint32, d time.Duration, out bool) (float64, error) {
	if _, err := h.sh(ctx, id, "iperf3 -s -1 -D"); err != nil {
		return 0, err
	}
	args := []string{"iperf3", "-J", "-O", "1", "-t", strconv.Itoa(int(d.Seconds())), "-p", strconv.Itoa(int(port)), "-c", testbed.Address(hostName).String()}
	if out {
		args = append(args, "-R")
	}
	var text []byte
	var err error
	for range 30 { // its server needs a moment to listen
		if text, err = h.bed.Command(ctx, args...).Output(); err == nil {
			break
		}
		pause(ctx, 100*time.Millisecond)
	}
	if err != nil {
		return 0, fmt.Errorf("run iperf3: %w: %s", err, text)
	}
	var answer struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return 0, fmt.Errorf("read iperf3's result: %w", err)
	}
	return answer.End.Received.Rate, nil
}

// meterSpec is a server with tools to load it. It is published for iperf3.
func (h *host) meterSpec(name string) *reflejov1.ServerSpec {
	s := h.debianSpec(name)
	s.Network = map[string]*reflejov1.Nic{"eth0": {Publish: map[string]*reflejov1.Publish{
		"iperf": {Protocol: "tcp", HostPort: meterPort, Port: meterPort},
	}}}
	return s
}

// meterPort is iperf3's.
const meterPort = 5201
