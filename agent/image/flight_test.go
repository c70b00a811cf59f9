package image

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

func begin[T any](w work[T]) func() work[T] { return func() work[T] { return w } }

func TestFlightIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flights[int]
		runs := 0
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				n, err := g.do(t.Context(), "k", nil, begin(func(context.Context, Progress) (int, error) {
					runs++
					<-stop
					return 42, nil
				}))
				if n != 42 || err != nil {
					t.Error(n, err)
				}
			})
		}
		synctest.Wait()
		close(stop)
		wg.Wait()
		if runs != 1 {
			t.Errorf("%d runs", runs)
		}
		if len(g.now) != 0 {
			t.Error("flight is still there")
		}
	})
}

// The work goes on when its first caller goes, is taken back when the last one goes, and a caller that
// comes while it is being taken back gets a new one.
func TestFlightOutlivesCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flights[string]
		cleaning, cleaned := make(chan struct{}), make(chan struct{})
		first := begin(func(ctx context.Context, _ Progress) (string, error) {
			<-ctx.Done()
			close(cleaning)
			<-cleaned
			return "", ctx.Err()
		})
		ctx1, cancel1 := context.WithCancel(t.Context())
		ctx2, cancel2 := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		returned1 := false
		wg.Go(func() {
			if _, err := g.do(ctx1, "k", nil, first); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			returned1 = true
		})
		synctest.Wait()
		wg.Go(func() {
			_, err := g.do(ctx2, "k", nil, first)
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			select {
			case <-cleaned:
			default:
				t.Error("the last caller returned before the work was taken back")
			}
		})
		synctest.Wait()
		cancel1()
		synctest.Wait()
		select {
		case <-cleaning:
			t.Error("the work ended with its first caller")
		default:
		}
		if !returned1 {
			t.Error("the first caller has to wait")
		}
		cancel2()
		synctest.Wait()
		wg.Go(func() {
			s, err := g.do(t.Context(), "k", nil, begin(func(context.Context, Progress) (string, error) { return "second", nil }))
			if s != "second" || err != nil {
				t.Error(s, err)
			}
		})
		synctest.Wait()
		close(cleaned)
		wg.Wait()
	})
}

func TestFlightProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flights[int]
		var mu sync.Mutex
		var got []int64
		step := make(chan int64)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := g.do(t.Context(), "k", func(_ string, done, _ int64) {
				mu.Lock()
				got = append(got, done)
				mu.Unlock()
			}, begin(func(_ context.Context, report Progress) (int, error) {
				for n := range step {
					report("s", n, 10<<20)
				}
				return 0, nil
			}))
			if err != nil {
				t.Error(err)
			}
		})
		for _, n := range []int64{1, 2, 3, 2 << 20, 2<<20 + 1, 10 << 20} {
			step <- n
			synctest.Wait()
		}
		close(step)
		wg.Wait()
		if want := []int64{1, 2 << 20, 10 << 20}; len(got) != len(want) || got[1] != want[1] || got[2] != want[2] {
			t.Errorf("%v, want %v", got, want)
		}
	})
}
