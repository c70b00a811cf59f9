package cgroup

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/cpuset"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

const page = 4096

// text is settings as an operator would type them.
func text(settings []setting) string {
	var b strings.Builder
	for _, s := range settings {
		fmt.Fprintf(&b, "%s=%s\n", s.file, s.value)
	}
	return b.String()
}

func TestLimitsV2(t *testing.T) {
	want := vserver.LimitSet{
		CPU:       vserver.CPU{MilliCores: 1500, Weight: 200},
		Memory:    vserver.Memory{Max: 512<<20 + 1, High: 400 << 20, Swap: 1 << 20},
		Processes: 1000,
		Disk:      vserver.Disk{ReadBPS: 1000, WriteIOPS: 50},
		Major:     7, Minor: 3,
	}
	for _, tt := range []struct {
		name, pin, ioMax string
		want             vserver.LimitSet
		text             string
	}{
		{"everything", "0-1", "8:0 rbps=max wbps=1 riops=max wiops=max\n", want, `
r/id/memory.high=419430400
r/id/memory.swap.max=1048576
r/id/memory.min=536870912
r/id/cpu.max=150000 100000
r/id/cpu.max.burst=0
r/id/cpu.weight=200
r/id/cpuset.cpus=0-1
r/id/pids.max=1000
r/id/cgroup.max.descendants=4096
r/id/cgroup.max.depth=64
r/id/io.max=8:0 rbps=max wbps=max riops=max wiops=max
r/id/io.max=7:3 rbps=1000 wbps=max riops=max wiops=50
`},
		{"nothing", "", "", vserver.LimitSet{Memory: vserver.Memory{Max: 1 << 30}}, `
r/id/memory.high=max
r/id/memory.swap.max=0
r/id/memory.min=1073741824
r/id/cpu.max=max 100000
r/id/cpu.max.burst=0
r/id/cpu.weight=100
r/id/cpuset.cpus=
r/id/pids.max=max
r/id/cgroup.max.descendants=4096
r/id/cgroup.max.depth=64
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := "\n" + text(limitsV2("r/id", tt.want, tt.pin, tt.ioMax, page)); got != tt.text {
				t.Errorf("got:%swant:%s", got, tt.text)
			}
		})
	}
}

func TestIOMaxV2(t *testing.T) {
	limited := vserver.LimitSet{Disk: vserver.Disk{ReadBPS: 1, WriteBPS: 2, ReadIOPS: 3, WriteIOPS: 4}, Major: 7, Minor: 1}
	free := vserver.LimitSet{Major: 7, Minor: 1}
	const none = "rbps=max wbps=max riops=max wiops=max"
	for _, tt := range []struct {
		name, now string
		want      vserver.LimitSet
		text      string
	}{
		{"new", "", limited, "io.max=7:1 rbps=1 wbps=2 riops=3 wiops=4\n"},
		{"already so", "7:1 rbps=1 wbps=2 riops=3 wiops=4\n", limited, ""},
		{"lifted", "7:1 rbps=1 wbps=2 riops=3 wiops=4\n", free, "io.max=7:1 " + none + "\n"},
		{"never limited", "", free, ""},
		{"other device", "7:2 rbps=9 wbps=max riops=max wiops=max\n", free, "io.max=7:2 " + none + "\n"},
		{"detached", "7:1 rbps=1 wbps=2 riops=3 wiops=4\n", vserver.LimitSet{}, "io.max=7:1 " + none + "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ioMaxV2(tt.now, tt.want)
			if text(got) != tt.text {
				t.Errorf("got %q, want %q", text(got), tt.text)
			}
			for _, s := range got {
				if key, _, _ := strings.Cut(s.value, " "); !strings.HasPrefix(s.old, key+" ") {
					t.Errorf("the way back of %q is %q", s.value, s.old)
				}
			}
		})
	}
}

func TestLimitsV1(t *testing.T) {
	want := vserver.LimitSet{
		CPU:       vserver.CPU{MilliCores: 1500, Weight: 200},
		Memory:    vserver.Memory{Max: 512 << 20, Swap: 1 << 20},
		Processes: 1000,
		Disk:      vserver.Disk{WriteBPS: 1000},
		Major:     7, Minor: 3,
	}
	now := stateV1{hasMemsw: true, memsw: 1 << 40, throttle: map[string]string{
		"blkio.throttle.read_bps_device":   "7:3 5\n8:0 6\n",
		"blkio.throttle.write_iops_device": "7:3 0\n",
	}}
	const all = `
memory/r/id/memory.limit_in_bytes=536870912
memory/r/id/memory.memsw.limit_in_bytes=537919488
memory/r/id/memory.soft_limit_in_bytes=536870912
memory/r/id/memory.kmem.tcp.limit_in_bytes=134217728
cpu/r/id/cpu.cfs_burst_us=0
cpu/r/id/cpu.cfs_period_us=100000
cpu/r/id/cpu.cfs_quota_us=150000
cpu/r/id/cpu.shares=2048
cpuset/r/id/cpuset.cpus=0-1
pids/r/id/pids.max=1000
blkio/r/id/blkio.throttle.read_bps_device=8:0 0
blkio/r/id/blkio.throttle.read_bps_device=7:3 0
blkio/r/id/blkio.throttle.write_bps_device=7:3 1000
`
	if got := "\n" + text(limitsV1("r/id", want, "0-1", 0, now, page)); got != all {
		t.Errorf("got:%swant:%s", got, all)
	}
	// A cap of all servers together, which v1 does not let a server's quota exceed.
	if got := text(limitsV1("r/id", want, "0-1", 1200, now, page)); !strings.Contains(got, "cfs_quota_us=120000\n") {
		t.Errorf("capped quota: %s", got)
	}
}

func TestMemoryV1Order(t *testing.T) {
	const limit, memsw = "limit_in_bytes", "memsw.limit_in_bytes"
	for _, tt := range []struct {
		name string
		max  int64
		swap int64
		high int64
		now  stateV1
		want string
	}{
		{"raise above both", 200 << 20, 0, 0, stateV1{hasMemsw: true, memsw: 100 << 20}, "memsw limit soft=209715200"},
		{"raise below memory+swap", 150 << 20, 100 << 20, 0, stateV1{hasMemsw: true, memsw: 200 << 20}, "limit memsw soft=157286400"},
		{"lower", 50 << 20, 0, 0, stateV1{hasMemsw: true, memsw: 100 << 20}, "limit memsw soft=52428800"},
		{"same", 100 << 20, 0, 0, stateV1{hasMemsw: true, memsw: 100 << 20}, "limit memsw soft=104857600"},
		{"throttled", 100 << 20, 0, 60 << 20, stateV1{hasMemsw: true, memsw: 100 << 20}, "limit memsw soft=62914560"},
		{"no swap accounting", 100 << 20, 0, 0, stateV1{}, "limit swappiness soft=104857600"},
		{"no swap accounting, swap", 100 << 20, 1 << 20, 0, stateV1{}, "limit soft=104857600"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := func(_, file, value string) setting { return setting{file: file, value: value} }
			var got []string
			for _, s := range memoryV1(in, vserver.Memory{Max: tt.max, Swap: tt.swap, High: tt.high}, tt.now, page) {
				switch s.file {
				case "memory." + limit:
					got = append(got, "limit")
				case "memory." + memsw:
					got = append(got, "memsw")
				case "memory.swappiness":
					got = append(got, "swappiness")
				default:
					got = append(got, "soft="+s.value)
				}
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
}

func TestShares(t *testing.T) {
	for weight, want := range map[int64]int64{0: 1024, 1: 10, 50: 512, 100: 1024, 10000: 102400} {
		if got := shares(weight); got != want {
			t.Errorf("shares(%d) = %d, want %d", weight, got, want)
		}
	}
}

func TestParent(t *testing.T) {
	cfg := Config{Parent: "r", MaxMilliCores: 1500}.withDefaults()
	if got, want := text(parentV2(cfg, 42)), "r/cpu.weight=1000\nr/cpu.max=150000 100000\nr/memory.min=42\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := text(parentV1(cfg)), "cpu/r/cpu.shares=10240\ncpu/r/cpu.cfs_period_us=100000\ncpu/r/cpu.cfs_quota_us=150000\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCheck(t *testing.T) {
	host := cpuset.Set{0, 1, 2, 3}
	good := vserver.LimitSet{CPU: vserver.CPU{MilliCores: 1000, Weight: 100, Pin: "1,0"}, Memory: vserver.Memory{Max: 1 << 30}, Processes: 10}
	if pin, err := check(good, host); err != nil || pin.String() != "0-1" {
		t.Fatalf("pin %q, %v", pin, err)
	}
	for field, spoil := range map[string]func(*vserver.LimitSet){
		"cpu.cores":       func(l *vserver.LimitSet) { l.CPU.MilliCores = 9 },
		"cpu.weight":      func(l *vserver.LimitSet) { l.CPU.Weight = 10001 },
		"cpu.pin":         func(l *vserver.LimitSet) { l.CPU.Pin = "4" },
		"memory.max":      func(l *vserver.LimitSet) { l.Memory.Max = 0 },
		"memory.high":     func(l *vserver.LimitSet) { l.Memory.High = 2 << 30 },
		"memory.swap":     func(l *vserver.LimitSet) { l.Memory.Swap = -1 },
		"processes":       func(l *vserver.LimitSet) { l.Processes = -1 },
		"disk.read_bps":   func(l *vserver.LimitSet) { l.Disk.ReadBPS = -1 },
		"disk.write_iops": func(l *vserver.LimitSet) { l.Disk.WriteIOPS = 1 << 60 },
		"disk":            func(l *vserver.LimitSet) { l.Disk.WriteIOPS = 1 },
	} {
		bad := good
		spoil(&bad)
		if _, err := check(bad, host); !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != field {
			t.Errorf("spoilt %s: %v blames %q", field, err, fault.FieldOf(err))
		}
	}
}

func TestConfigValidate(t *testing.T) {
	for _, bad := range []Config{{}, {Parent: ".."}, {Parent: "a/b"}, {Parent: "a", Root: "x"}, {Parent: "a", Weight: 10001}, {Parent: "a", MaxMilliCores: -1}} {
		if err := bad.Validate(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v, want fault.Invalid", bad, err)
		}
	}
	if err := (Config{Parent: "reflejo-alpha"}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{
		"00000000-0000-4000-8000-00000000000a":  true,
		"00000000-0000-4000-8000-00000000000A":  false,
		"00000000-0000-4000-8000-00000000000":   false,
		"00000000_0000-4000-8000-00000000000a":  false,
		"../00000-0000-4000-8000-00000000000a":  false,
		"00000000-0000-4000-8000-00000000000ag": false,
		"":                                      false,
	} {
		if validID(id) != want {
			t.Errorf("validID(%q) = %v", id, !want)
		}
	}
}

func TestStat(t *testing.T) {
	if got := flat("anon 5\nfile 6\nodd\nx y\n")["file"]; got != 6 {
		t.Errorf("flat: %d", got)
	}
	if got := some10("some avg10=12.50 avg60=1.00 avg300=0.00 total=9\nfull avg10=1.00\n"); got != 0.125 {
		t.Errorf("some10: %v", got)
	}
	if some10("") != 0 || single("max\n") != -1 || single("17\n") != 17 {
		t.Error("empty pressure, max or a number read wrongly")
	}
	v2 := ioStatV2("7:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:0\n254:0 rbytes=10 wbytes=20 rios=1 wios=1\n")
	if got := v2["7:0"]; got != (transfer{1, 2, 3, 4}) {
		t.Errorf("io.stat: %+v", got)
	}
	if got := pick(v2, "7:0"); got != (transfer{1, 2, 3, 4}) {
		t.Errorf("known device: %+v", got)
	}
	if got := pick(v2, ""); got != (transfer{10, 20, 3, 4}) {
		t.Errorf("unknown device: %+v", got)
	}
	v1 := ioStatV1("7:0 Read 1\n7:0 Write 2\n7:0 Total 3\nTotal 3\n", "7:0 Read 4\n7:0 Write 5\n")
	if got := v1["7:0"]; got != (transfer{1, 2, 4, 5}) {
		t.Errorf("blkio: %+v", got)
	}
}

func TestRatesOf(t *testing.T) {
	before := vserver.Usage{CPU: time.Second, WriteBytes: 1000}
	after := vserver.Usage{CPU: 2 * time.Second, WriteBytes: 5000, Throttled: time.Second}
	if got := RatesOf(before, after, 2*time.Second); got != (Rates{Cores: 0.5, Throttled: 0.5, WriteBPS: 2000}) {
		t.Errorf("%+v", got)
	}
	if got := RatesOf(before, after, 0); got != (Rates{}) {
		t.Errorf("no time: %+v", got)
	}
}

func FuzzStat(f *testing.F) {
	f.Add("7:0 rbytes=1 wbytes=2 rios=3\n", "some avg10=1.5")
	f.Fuzz(func(_ *testing.T, a, b string) {
		flat(a)
		ioStatV2(a)
		ioStatV1(a, b)
		some10(b)
		ioMaxV2(a, vserver.LimitSet{Major: 1})
	})
}

func TestMountOptions(t *testing.T) {
	const mountinfo = `24 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate
36 24 0:31 / /sys/fs/cgroup/x rw - tmpfs tmpfs rw,mode=755
`
	if got, ok := mountOptions(mountinfo, "/sys/fs/cgroup"); !ok || strings.Join(got, " ") != "rw nsdelegate" {
		t.Errorf("got %v, %v", got, ok)
	}
	for _, dir := range []string{"/sys/fs/cgroup/x", "/nowhere"} {
		if got, ok := mountOptions(mountinfo, dir); ok {
			t.Errorf("%s is taken for cgroup2: %v", dir, got)
		}
	}
}
