package oci

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew; review the difference")

func TestSpecGolden(t *testing.T) {
	base := vserver.Container{ID: "0b1e", Name: "web", Hostname: "web", Rootfs: "/run/reflejo/rootfs/0b1e", IDs: vserver.IDRange{First: 1 << 20, Size: 65536}}
	entry := base
	entry.Env, entry.Dir = []string{"PATH=/opt/bin", "A=b"}, "/srv"
	for name, in := range map[string]specInput{
		"systemd-v1":  {Container: base, Launch: planLaunch("/sbin/init", initSystemd, nil, true), CgroupPath: "/reflejo/alpha/0b1e", Arch: "amd64", View: "/run/reflejo/lxcfs", OpenFiles: 1 << 20},
		"entry-v2":    {Container: entry, Launch: planLaunch("", "", []string{"nginx"}, false), CgroupPath: "/reflejo/alpha/0b1e", Unified: true, Arch: "arm64", InitBinary: "/usr/bin/reflejo", OpenFiles: 20000},
		"busybox-run": {Container: base, Launch: planLaunch("/sbin/init", initBusybox, nil, true), CgroupPath: "/reflejo/alpha/0b1e", Arch: "amd64", InitBinary: "/usr/bin/reflejo", OpenFiles: 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			spec := buildSpec(in)
			spec.Linux.Seccomp.Syscalls[0].Names = nil // long, and the same for all: TestSeccomp
			got, err := json.MarshalIndent(spec, "", " ")
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name+".json")
			if *rewrite {
				if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(want) != string(got)+"\n" {
				t.Errorf("differs from %s (go test -rewrite, then review):\n%s", path, got)
			}
		})
	}
}

func TestSeccomp(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range allowedSyscalls {
		if seen[s] {
			t.Errorf("%s is named twice", s)
		}
		seen[s] = true
	}
	for _, s := range []string{
		"bpf", "create_module", "delete_module", "finit_module", "init_module", "kexec_load", "kexec_file_load", "io_uring_setup",
		"open_by_handle_at", "perf_event_open", "userfaultfd", "clock_settime", "settimeofday", "swapon", "swapoff", "iopl", "ioperm",
		"acct", "quotactl", "move_pages", "migrate_pages", "add_key", "keyctl", "request_key", "socket", "lookup_dcookie", "nfsservctl", "uselib", "ustat", "vm86",
	} {
		if seen[s] {
			t.Errorf("%s is allowed", s)
		}
	}
	if !slices.Contains(allowedSyscalls, "clone3") || seen["modify_ldt"] {
		t.Error("the list is not what it should be")
	}
}

func TestCapabilities(t *testing.T) {
	for _, c := range []string{"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_TIME", "CAP_MKNOD", "CAP_BPF", "CAP_SYSLOG", "CAP_MAC_ADMIN"} {
		if slices.Contains(osCapabilities, c) {
			t.Errorf("%s is given", c)
		}
	}
	if c := capabilities(1000); len(c.Effective) != 0 || len(c.Bounding) == 0 {
		t.Errorf("a user has %v of %v", c.Effective, c.Bounding)
	}
}
