package oci

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

var sample = vserver.Preparation{
	ID: "0b1e", Hostname: "web", Timezone: "Europe/Madrid", First: true,
	Links: []vserver.Link{{Name: "eth0", MAC: "02:00:00:00:00:01", Address: netip.MustParsePrefix("10.1.2.3/24"), Gateway: netip.MustParseAddr("10.1.2.1")}},
}

// show prints files as an operator would look at them.
func show(files []file) string {
	var b strings.Builder
	for _, f := range files {
		switch {
		case f.Remove:
			fmt.Fprintf(&b, "rm %s\n", f.Path)
		case f.Link != "":
			fmt.Fprintf(&b, "%s -> %s\n", f.Path, f.Link)
		default:
			fmt.Fprintf(&b, "%s %#o %q\n", f.Path, f.Mode, f.Content)
		}
	}
	return b.String()
}

func TestPreparedFiles(t *testing.T) {
	script, config := sample, sample
	script.FirstBoot.UserData, config.FirstBoot.UserData = "#!/bin/sh\ntrue\n", "#cloud-config\npackages: [jq]\n"
	later := script
	later.First = false
	for name, tt := range map[string]struct {
		p        vserver.Preparation
		t        traits
		has, not []string
	}{
		"plain image": {p: script, t: traits{Zone: true},
			has: []string{`/etc/hostname 0644 "web\n"`, "10.1.2.3\\tweb", "nameserver 9.9.9.9", "/etc/localtime -> /usr/share/zoneinfo/Europe/Madrid", firstBootScript + " 0700"},
			not: []string{"systemd", "cloud", "127.0.0.53"}},
		"systemd": {p: script, t: traits{Systemd: true, Zone: true},
			has: []string{"multi-user.target.wants/reflejo-first-boot.service -> ../reflejo-first-boot.service", "Unmanaged=yes", "systemd-firstboot.service -> /dev/null"}},
		"cloud-init": {p: config, t: traits{Systemd: true, CloudInit: true, Zone: true},
			has: []string{"seed/nocloud/user-data 0600 \"#cloud-config", `\"instance-id\":\"0b1e\"`, `\"macaddress\":\"02:00:00:00:00:01\"`, "config: disabled"},
			not: []string{"reflejo-first-boot"}},
		"script and cloud-init": {p: script, t: traits{CloudInit: true, Zone: true}, has: []string{"user-data 0600 \"#!/bin/sh"}, not: []string{firstBootScript}},
		"later":                 {p: later, t: traits{Systemd: true, CloudInit: true, Zone: true}, has: []string{"/etc/hostname"}, not: []string{"seed", "first-boot", "/dev/null"}},
		"zone of the host":      {p: sample, t: traits{}, has: []string{`/etc/localtime 0644 "TZif"`}},
	} {
		t.Run(name, func(t *testing.T) {
			files, err := preparedFiles(tt.p, tt.t, "nameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch example.org\n", "TZif")
			if err != nil {
				t.Fatal(err)
			}
			text := show(files)
			for _, want := range tt.has {
				if !strings.Contains(text, want) {
					t.Errorf("no %s in\n%s", want, text)
				}
			}
			for _, not := range tt.not {
				if strings.Contains(text, not) {
					t.Errorf("%s is in\n%s", not, text)
				}
			}
		})
	}
	if _, err := preparedFiles(config, traits{Zone: true}, "", ""); !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != "first_boot.user_data" {
		t.Error("cloud-config without cloud-init:", err)
	}
	for _, zone := range []string{"../etc/shadow", "/etc/passwd", "Europe/../x", "a\nb", strings.Repeat("x", 65), "Mars/Base"} {
		p := sample
		p.Timezone = zone
		if _, err := preparedFiles(p, traits{}, "", ""); !fault.Is(err, fault.Invalid) {
			t.Errorf("zone %q: %v", zone, err)
		}
	}
}

func TestHostsKeepsTheServersLines(t *testing.T) {
	once := hosts("127.0.0.1 localhost\n10.9.9.9 db\n", sample)
	renamed := sample
	renamed.Hostname = "new"
	twice := hosts(once, renamed)
	if hosts(twice, renamed) != twice {
		t.Error("not stable:\n", hosts(twice, renamed))
	}
	if !strings.HasPrefix(twice, hostsBegin) || strings.Count(twice, "10.9.9.9 db\n") != 1 || strings.Contains(twice, "web") || !strings.Contains(twice, "10.1.2.3\tnew\n") {
		t.Error(twice)
	}
}

func TestResolvConf(t *testing.T) {
	own := resolvConf(vserver.DNS{Servers: []string{"10.0.0.1"}, Search: []string{"a.b"}}, "nameserver 9.9.9.9\nsearch c.d\n")
	if !strings.HasSuffix(own, "nameserver 10.0.0.1\nsearch a.b\n") {
		t.Error(own)
	}
	host := resolvConf(vserver.DNS{}, "# x\nnameserver ::1\nnameserver 127.0.0.1\nnameserver 1.1.1.1\nnameserver junk\ndomain c.d\n")
	if !strings.HasSuffix(host, "nameserver 1.1.1.1\nsearch c.d\n") || strings.Contains(host, "127") {
		t.Error(host)
	}
}

func TestSSHHostKey(t *testing.T) {
	private, public, err := newSSHHostKey("root@web")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(private))
	if block == nil || block.Type != "OPENSSH PRIVATE KEY" {
		t.Fatal(private)
	}
	fields := strings.Fields(public)
	blob, err := base64.StdEncoding.DecodeString(fields[1])
	if err != nil || fields[0] != "ssh-ed25519" || len(blob) != 4+11+4+32 {
		t.Fatal(public, err)
	}
	const head = "openssh-key-v1\x00" + "\x00\x00\x00\x04none" + "\x00\x00\x00\x04none" + "\x00\x00\x00\x00" + "\x00\x00\x00\x01"
	rest, ok := strings.CutPrefix(string(block.Bytes), head)
	if !ok {
		t.Fatalf("%q", block.Bytes)
	}
	rest, ok = strings.CutPrefix(rest, string(sshStrings(blob)))
	if n := binary.BigEndian.Uint32([]byte(rest)); !ok || int(n) != len(rest)-4 || n%8 != 0 || rest[4:8] != rest[8:12] {
		t.Fatalf("private section: %q", rest)
	}
}
