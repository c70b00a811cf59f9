package image

import (
	"context"
	"sync"
)

// Progress is told how far long work is: done of total bytes of a step; total 0 is unknown.
type Progress = func(step string, done, total int64)

// flights lets callers who want the same thing at the same time share one piece of work.
//
//	absent ──do──▶ flying ──work ends──▶ absent
//	                 │ last waiter gone: its context is cancelled
//	                 ▼
//	             abandoned ──work ends──▶ absent     a new caller waits for that, then starts anew
//
// The work has a context of its own, so it survives any one caller's cancellation.
type flights[T any] struct {
	mu  sync.Mutex
	now map[string]*flight[T]
}

// work is what a flight does; ctx ends when nobody wants it any more.
type work[T any] func(ctx context.Context, report Progress) (T, error)

type flight[T any] struct {
	done   chan struct{} // closed when result and err are valid
	result T
	err    error
	cancel context.CancelFunc

	waiters   int  // under flights.mu
	abandoned bool // under flights.mu

	mu       sync.Mutex
	step     string
	at, of   int64
	watchers []chan struct{} // capacity 1 each
}

// do returns the result of the work for key, which runs once however many callers there are: begin is
// called, before anybody can join, by the caller that finds none under way, and returns the work.
// progress is called on the caller's own goroutine, so a slow caller delays nobody else.
// A caller whose ctx ends gets ctx's error; the last one gets it when the work is taken back.
func (g *flights[T]) do(ctx context.Context, key string, progress Progress, begin func() work[T]) (T, error) {
	var zero T
	for {
		f, joined := g.join(key, begin)
		if !joined { // being taken back
			select {
			case <-f.done:
				continue
			case <-ctx.Done():
				return zero, context.Cause(ctx)
			}
		}
		return g.wait(ctx, f, progress)
	}
}

// join adds a waiter to the flight of key, beginning it if there is none.
func (g *flights[T]) join(key string, begin func() work[T]) (*flight[T], bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.now[key]; f != nil {
		if f.abandoned {
			return f, false
		}
		f.waiters++
		return f, true
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &flight[T]{done: make(chan struct{}), cancel: cancel, waiters: 1}
	if g.now == nil {
		g.now = map[string]*flight[T]{}
	}
	g.now[key] = f
	work := begin()
	go func() {
		f.result, f.err = work(ctx, f.report)
		cancel()
		g.mu.Lock()
		delete(g.now, key)
		g.mu.Unlock()
		close(f.done)
	}()
	return f, true
}

// wait passes progress on until the work or ctx ends.
func (g *flights[T]) wait(ctx context.Context, f *flight[T], progress Progress) (T, error) {
	var zero T
	news := f.watch()
	for {
		select {
		case <-f.done:
			return f.result, f.err
		case <-news:
			if progress != nil {
				progress(f.latest())
			}
		case <-ctx.Done():
			if g.leave(f) {
				<-f.done // what was half done has been taken back when the last caller returns
			}
			return zero, context.Cause(ctx)
		}
	}
}

// leave reports whether the caller was the last: the work is told to stop.
func (g *flights[T]) leave(f *flight[T]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.waiters--
	if f.waiters > 0 {
		return false
	}
	f.abandoned = true
	f.cancel()
	return true
}

func (f *flight[T]) watch() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	news := make(chan struct{}, 1)
	if f.step != "" {
		news <- struct{}{}
	}
	f.watchers = append(f.watchers, news)
	return news
}

func (f *flight[T]) latest() (string, int64, int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.step, f.at, f.of
}

// report is the Progress of the work. Small steps are not passed on: they would cost more than they tell.
func (f *flight[T]) report(step string, done, total int64) {
	const worth = 1 << 20
	f.mu.Lock()
	defer f.mu.Unlock()
	if step == f.step && total == f.of && done < f.at+worth && done != total {
		return
	}
	f.step, f.at, f.of = step, done, total
	for _, w := range f.watchers {
		select {
		case w <- struct{}{}:
		default: // it has not taken the last one yet
		}
	}
}
