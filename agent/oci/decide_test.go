package oci

import (
	"reflect"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

func TestInitSystem(t *testing.T) {
	for _, tt := range []struct {
		name, target string
		want         initSystem
	}{
		{"/sbin/init", "/m/usr/lib/systemd/systemd", initSystemd},
		{"/lib/systemd/systemd", "/m/lib/systemd/systemd", initSystemd},
		{"/sbin/init", "/m/bin/busybox", initBusybox},
		{"/sbin/init", "/m/sbin/init", initSysV},
		{"/sbin/init", "/m/sbin/openrc-init", initOpenRC},
		{"/sbin/init", "/m/usr/bin/runit-init", initRunit},
		{"/init", "/m/init", initOther},
		{"/bin/sh", "/m/bin/busybox", ""},
		{"/usr/bin/tini", "/m/usr/bin/tini", ""},
	} {
		if got := initSystemOf(tt.name, tt.target); got != tt.want {
			t.Errorf("%s → %s is %q, want %q", tt.name, tt.target, got, tt.want)
		}
	}
}

func TestPlanLaunch(t *testing.T) {
	for _, tt := range []struct {
		name   string
		init   string
		system initSystem
		entry  []string
		script bool
		want   launch
	}{
		{name: "systemd", init: "/sbin/init", system: initSystemd, script: true, want: launch{System: initSystemd, Argv: []string{"/sbin/init"}}},
		{name: "systemd as entry point", system: initSystemd, entry: []string{"/sbin/init", "--x"}, want: launch{System: initSystemd, Argv: []string{"/sbin/init", "--x"}}},
		{name: "nothing", want: launch{System: initOwn, Argv: []string{guestInitPath, "init"}, NeedsBinary: true}},
		{name: "entry point", entry: []string{"nginx", "-g"}, want: launch{System: initOwn, Argv: []string{guestInitPath, "init", "--", "nginx", "-g"}, NeedsBinary: true, EntryPoint: true}},
		{name: "script, then BusyBox", init: "/sbin/init", system: initBusybox, script: true,
			want: launch{System: initBusybox, Argv: []string{guestInitPath, "init", "-first-boot=" + firstBootScript, "-exec", "--", "/sbin/init"}, NeedsBinary: true}},
	} {
		if got := planLaunch(tt.init, tt.system, tt.entry, tt.script); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestStopWay(t *testing.T) {
	for s, want := range map[initSystem]int{initSystemd: 37, initBusybox: 12, initOwn: 15, initOther: 15, "": 15} {
		if got := stopOf(s); got.Signal != want || got.Argv != nil {
			t.Errorf("%s: %+v", s, got)
		}
	}
	for _, s := range []initSystem{initSysV, initOpenRC, initRunit} {
		if got := stopOf(s); got.Signal != 0 || len(got.Argv) == 0 {
			t.Errorf("%s: %+v", s, got)
		}
	}
}

func TestResolveUser(t *testing.T) {
	passwd := []byte("root:x:0:0:root:/root:/bin/bash\nbroken\nann:x:1000:1001::/home/ann:/bin/sh\nbad:x:-1:0::/:\nodd:x:1002:1:::/bin/sh\n")
	group := []byte("root:x:0:\nstaff:x:50:bob,ann\nann:x:1001:ann\nannette:x:60:annette\n")
	for user, want := range map[string]account{
		"":        {Name: "root", Home: "/root", Shell: "/bin/bash"},
		"ann":     {Name: "ann", UID: 1000, GID: 1001, Groups: []uint32{50}, Home: "/home/ann", Shell: "/bin/sh"},
		"1000":    {Name: "ann", UID: 1000, GID: 1001, Groups: []uint32{50}, Home: "/home/ann", Shell: "/bin/sh"},
		"1000:7":  {Name: "ann", UID: 1000, GID: 7, Home: "/home/ann", Shell: "/bin/sh"},
		"4000":    {UID: 4000, Home: "/"},
		"4000:12": {UID: 4000, GID: 12, Home: "/"},
		"odd":     {Name: "odd", UID: 1002, GID: 1, Home: "/", Shell: "/bin/sh"},
	} {
		if got, err := resolveUser(passwd, group, user); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is %+v, %v", user, got, err)
		}
	}
	for _, user := range []string{"bob", "bad", "-1", "4294967295", "1000:x", ":", "0x0", "1000:-1"} {
		if got, err := resolveUser(passwd, group, user); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q gave %+v, %v", user, got, err)
		}
	}
}

func TestStates(t *testing.T) {
	s, err := decodeRunc([]byte(`{"id":"a","init_process_pid":42,"init_process_start":99,"created":"2026-01-02T03:04:05Z","cgroup_paths":{"freezer":"/f"},"config":{"rootfs":"/"}}`))
	if err != nil || s.Pid != 42 || s.Ticks != 99 || s.Freezer != "/f" || s.Created.Year() != 2026 {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := decodeRunc([]byte(`{"cgroup_paths":{"":"/u"}}`)); err != nil || s.Freezer != "/u" {
		t.Errorf("%+v, %v", s, err)
	}
	s, err = decodeCrun([]byte(`{"pid":43,"process-start-time":98,"created":"2026-01-02T03:04:05.1Z"}`))
	if err != nil || s.Pid != 43 || s.Ticks != 98 {
		t.Errorf("%+v, %v", s, err)
	}
	state, ticks, err := parseStat([]byte("7 (a ) Z b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0 18446744073709551615"))
	if err != nil || state != 'S' || ticks != 12345 {
		t.Errorf("%c %d %v", state, ticks, err)
	}
	for _, bad := range []string{"", "7 (x", "7 (x)", "7 (x) S 1", "7 (x) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 now"} {
		if _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestHandlesSignal(t *testing.T) {
	const status = "Name:\tsystemd\nSigBlk:\t0000000000000001\nSigIgn:\tffffffffffffffff\nSigCgt:\t0000001000004000\n"
	for s, want := range map[int]bool{1: true, 15: true, 37: true, 2: false, 64: false} {
		if handlesSignal(status, s) != want {
			t.Errorf("signal %d: %v", s, !want)
		}
	}
}
