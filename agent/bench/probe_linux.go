package bench

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
)

const (
	probeEvery = 10 * time.Millisecond
	// probeLimit is below the second after which a lost SYN is sent again: a connection says
	// that the server answered when it was asked for, not later.
	probeLimit = 500 * time.Millisecond
	// probePatience is for how long a server may be away.
	probePatience = time.Minute
)

// probe asks a server for a connection again and again.
type probe struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu       sync.Mutex
	answered []time.Time // when those were asked for that came about
}

// startProbe asks from a network namespace.
func startProbe(ctx context.Context, netns, address string) *probe {
	ctx, cancel := context.WithCancel(ctx)
	p := &probe{cancel: cancel}
	p.done.Go(func() {
		tick := time.NewTicker(probeEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				p.done.Go(func() { p.ask(ctx, netns, address) })
			}
		}
	})
	return p
}

func (p *probe) ask(ctx context.Context, netns, address string) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	var c net.Conn
	var asked time.Time
	err := testbed.Inside(netns, "", func() (err error) {
		asked = time.Now()
		c, err = new(net.Dialer).DialContext(ctx, "tcp", address)
		return err
	})
	if err != nil {
		return
	}
	_ = c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answered = append(p.answered, asked)
}

// longestGap is the longest time between two answers since a moment, when the server
// answers again.
func (p *probe) longestGap(ctx context.Context, since time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	now := time.Now()
	for !p.answeredAfter(now) {
		pause(ctx, probeEvery)
		if ctx.Err() != nil {
			return 0, fmt.Errorf("await the server's answers: %w", ctx.Err())
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return longestGap(p.answered, since), nil
}

func (p *probe) answeredAfter(t time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.answered, func(a time.Time) bool { return a.After(t) })
}

// longestGap is the longest time between two moments that follow each other, of those of
// which the later one is after since.
func longestGap(all []time.Time, since time.Time) (longest time.Duration) {
	all = slices.SortedFunc(slices.Values(all), time.Time.Compare)
	for i := 1; i < len(all); i++ {
		if all[i].After(since) {
			longest = max(longest, all[i].Sub(all[i-1]))
		}
	}
	return longest
}

// stop ends it, and returns when nothing of it is left.
func (p *probe) stop() {
	p.cancel()
	p.done.Wait()
}
