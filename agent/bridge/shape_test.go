package bridge

import (
	"encoding/binary"
	"math"
	"net/netip"
	"testing"
)

func TestRates(t *testing.T) {
	for _, c := range []struct {
		bits, host int64
		want       string
	}{
		{0, 0, ""},
		{1e6, 0, "htb rate 8000bit ceil 1000000bit burst 15140 cburst 15140 quantum 1514 bfifo limit 131072"},
		{10e6, 0, "htb rate 8000bit ceil 10000000bit burst 15140 cburst 15140 quantum 1514 bfifo limit 131072"},
		{1e9, 0, "htb rate 8000bit ceil 1000000000bit burst 15140 cburst 1250000 quantum 125000 bfifo limit 12500000"},
		{40e9, 0, "htb rate 8000bit ceil 40000000000bit burst 15140 cburst 50000000 quantum 1048576 bfifo limit 67108864"},
		{40e9, 10e9, "htb rate 8000bit ceil 10000000000bit burst 15140 cburst 12500000 quantum 1048576 bfifo limit 67108864"},
		{0, 1e9, "htb rate 8000bit ceil 1000000000bit burst 15140 cburst 1250000 quantum 125000 bfifo limit 12500000"},
		{1, 0, "htb rate 8bit ceil 8bit burst 15140 cburst 15140 quantum 1514 bfifo limit 131072"},
	} {
		r, ok := nicRate(c.bits, c.host)
		if got := r.String(); ok != (c.want != "") || ok && got != c.want {
			t.Errorf("%d of %d: %q, want %q", c.bits, c.host, got, c.want)
		}
	}
}

// struct tc_htb_opt: two rates of 12 bytes, then buffer, cbuffer, quantum, level, prio.
func TestRateParameters(t *testing.T) {
	for _, c := range []struct {
		bits     int64
		ceil     uint32
		cbuffers uint32
	}{
		{10e6, 1_250_000, 189_250}, // 15,140 bytes take 12.1 ms
		{1e9, 125_000_000, 156_250},
		{34e9, 4_250_000_000, 156_250},
		{40e9, math.MaxUint32, 156_250}, // 5e9 does not fit and must not wrap
		{1 << 35, math.MaxUint32, 156_250},
	} {
		r, _ := nicRate(c.bits, 0)
		b := r.parms()
		if len(b) != 44 {
			t.Fatalf("%d bytes, want 44", len(b))
		}
		if got := binary.NativeEndian.Uint32(b[20:]); got != c.ceil {
			t.Errorf("%d bit/s: ceil %d, want %d", c.bits, got, c.ceil)
		}
		if got := binary.NativeEndian.Uint32(b[28:]); got < c.cbuffers-1 || got > c.cbuffers { // whole bytes
			t.Errorf("%d bit/s: cbuffer %d, want %d", c.bits, got, c.cbuffers)
		}
	}
}

func TestClassNumbers(t *testing.T) {
	seen := map[uint32]bool{}
	for n := uint16(1); n <= classes; n++ {
		id := classID(n)
		if id == htbRoot || seen[id] || id>>16 != htbMajor || id&15 != 0 || queueHandle(n)>>16 == htbMajor && n == 0 {
			t.Fatalf("class %d has the id %x", n, id)
		}
		seen[id] = true
	}
	if len(priorityProgram(classID(classes))) != 4*8 {
		t.Error("the program is not 4 instructions")
	}
}

func TestNames(t *testing.T) {
	a, b := portName("5e000000-0000-4000-8000-000000000001", "eth0"), portName("5e000000-0000-4000-8000-000000000001", "eth1")
	if a == b || len(a) != 15 {
		t.Errorf("names %s and %s: must differ and have 15 characters", a, b)
	}
	for _, n := range []portNote{
		{portID{"web", "eth0"}, 7, "02:00:00:00:00:01", netip.MustParsePrefix("10.0.0.2/24"), netip.MustParseAddr("10.0.0.1")},
		{portID{"web", "eth0"}, 0, "02:00:00:00:00:01", netip.MustParsePrefix("10.0.0.2/24"), netip.Addr{}},
	} {
		if got, ok := parsePortNote(n.String()); !ok || got != n {
			t.Errorf("%q is read as %+v, %t", n, got, ok)
		}
		if len(n.String()) > 255 {
			t.Errorf("%q is too long for an alias", n)
		}
	}
	for _, bad := range []string{"", "eth0", "reflejo network x", "reflejo server web eth0 class x 02:00:00:00:00:01 10.0.0.2/24 via -",
		"reflejo server web eth0 class 1 02:00:00:00:00:01 10.0.0.2 via -", "reflejo server web eth0 class 1 02:00:00:00:00:01 10.0.0.2/24 via x"} {
		if n, ok := parsePortNote(bad); ok {
			t.Errorf("%q is read as %+v", bad, n)
		}
	}
	lan := gatewayMAC("lan", netip.MustParseAddr("10.0.0.1"))
	if lan[0]&3 != 2 || lan.String() == gatewayMAC("lan", netip.MustParseAddr("10.0.0.2")).String() {
		t.Errorf("gateway address %s: must be local, unicast, and each host's own", lan)
	}
}
