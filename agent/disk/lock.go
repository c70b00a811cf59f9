package disk

import (
	"context"
	"sync"
)

// locks serialises calls about the same object; different objects do not wait for each other.
type locks struct {
	mu   sync.Mutex
	held map[string]*slot
}

type slot struct {
	token chan struct{} // full while nobody holds it
	users int
}

// lock waits until key is free or ctx ends.
func (l *locks) lock(ctx context.Context, key string) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*slot{}
	}
	s := l.held[key]
	if s == nil {
		s = &slot{token: make(chan struct{}, 1)}
		s.token <- struct{}{}
		l.held[key] = s
	}
	s.users++
	l.mu.Unlock()

	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if s.users--; s.users == 0 {
			delete(l.held, key)
		}
	}
	if err := ctx.Err(); err != nil {
		leave()
		return nil, err
	}
	select {
	case <-s.token:
		return func() { s.token <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
