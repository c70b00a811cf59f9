package vservertest

import "testing"

func TestLimitsContract(t *testing.T) {
	LimitsContract(t, func(*testing.T) LimitsHost {
		l := NewLimits()
		return LimitsHost{Limits: l, Run: func(_ *testing.T, id string, tasks int, held int64) { l.Run(id, tasks, held) }}
	})
}

func TestLimitsPrintThemselves(t *testing.T) {
	l, id := NewLimits(), "00000000-0000-4000-8000-000000000001"
	if err := l.Set(t.Context(), id, SomeLimits()); err != nil {
		t.Fatal(err)
	}
	if err := l.Freeze(t.Context(), id, true); err != nil {
		t.Fatal(err)
	}
	const want = `00000000-0000-4000-8000-000000000001 cpu 500m weight 100 pin "" memory 67108864 high 0 swap 0 pids 64 disk 0:0 rbps 0 wbps 0 riops 0 wiops 0 ids 1048576+65536 frozen
`
	if got := l.String(); got != want {
		t.Fatalf("got:\n%swant:\n%s", got, want)
	}
}
