package demo

import (
	"strings"
	"testing"
)

func TestMeasuredBounds(t *testing.T) {
	m := measured{what: "CPU", unit: "cores", asked: 0.5, low: 0.99, high: 1.01}
	for got, want := range map[float64]bool{0.5: true, 0.495: true, 0.4949: false, 0.505: true, 0.51: false, 0: false} {
		m.got = got
		if m.within() != want {
			t.Errorf("%v of %v within: %v, want %v", got, m.asked, !want, want)
		}
		if strings.Contains(m.String(), "OUT OF BOUNDS") == want {
			t.Errorf("%q does not say what it means", m)
		}
	}
}

func TestReportRemembersWhatFailed(t *testing.T) {
	var out strings.Builder
	r := &report{out: &out}
	r.show(measured{what: "disk", asked: 10, got: 10, low: 1, high: 1})
	r.check(true, "servers run")
	if err := r.end(); err != nil {
		t.Errorf("end = %v", err)
	}
	r.show(measured{what: "network", asked: 10, got: 2, low: 1, high: 1})
	r.check(false, "plan is empty")
	if err := r.end(); err == nil || !strings.Contains(err.Error(), "network; plan is empty") {
		t.Errorf("end = %v, want both failures named", err)
	}
}

func TestAmount(t *testing.T) {
	for want, got := range map[string]string{"0.5 cores": amount(0.5, "cores"), "20 MiB/s": amount(20, "MiB/s"), "19.97": amount(19.968, "")} {
		if got != want {
			t.Errorf("amount = %q, want %q", got, want)
		}
	}
}
