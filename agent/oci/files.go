package oci

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// firstBootScript is where a first-boot script waits in images without cloud-init: a unit
// of ours runs it under systemd, `reflejo init` before any other init.
const firstBootScript = "/var/lib/reflejo/first-boot"

// maxUserData is how much first-boot data a server may be given.
const maxUserData = 512 << 10

// file is something that Prepare puts into a server: exactly one of Content with Mode,
// Link, or Remove.
type file struct {
	Path    string
	Content string
	Mode    uint32
	Link    string
	Remove  bool
}

// traits are what Prepare has to know about an image.
type traits struct {
	Systemd        bool
	CloudInit      bool
	NetworkManager bool
	Ifupdown       bool   // /etc/network/interfaces is there
	SSH            bool   // an SSH server is installed
	Zone           bool   // the image has the zone's file
	Hosts          string // what is in /etc/hosts
}

// preparedFiles are the files that make p true in an image, in the order to write them.
// resolver is the host's resolver file, zone the contents of the host's file of the time
// zone ("" without). fault.Invalid: the first-boot data cannot be used with this image.
func preparedFiles(p vserver.Preparation, t traits, resolver, zone string) ([]file, error) {
	out := []file{
		{Path: "/etc/hostname", Content: p.Hostname + "\n", Mode: 0o644},
		{Path: "/etc/hosts", Content: hosts(t.Hosts, p), Mode: 0o644},
		{Path: "/etc/resolv.conf", Content: resolvConf(p.DNS, resolver), Mode: 0o644},
	}
	tz, err := timezone(p.Timezone, t.Zone, zone)
	if err != nil {
		return nil, err
	}
	out = append(out, tz...)
	out = append(out, unmanagedLinks(p.Links, t)...)
	if !p.First {
		return out, nil
	}
	if t.Systemd {
		for _, u := range maskedUnits {
			out = append(out, file{Path: "/etc/systemd/system/" + u, Link: "/dev/null"})
		}
	}
	boot, err := firstBoot(p, t)
	return append(out, boot...), err
}

// maskedUnits cannot work here, or wait for a network that the host configures.
var maskedUnits = []string{
	"NetworkManager-wait-online.service",
	"proc-sys-fs-binfmt_misc.automount",
	"systemd-firstboot.service", // asks questions on the console
	"systemd-networkd-wait-online.service",
}

// hostsBegin and hostsEnd enclose our part of /etc/hosts; the rest is the server's.
const (
	hostsBegin = "# begin: written by reflejo before every start"
	hostsEnd   = "# end: written by reflejo"
)

// hosts is the file with our part first (the first match wins) and the server's lines after it.
func hosts(have string, p vserver.Preparation) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n", hostsBegin)
	self := "127.0.1.1"
	for _, l := range p.Links {
		if l.Address.IsValid() {
			self = l.Address.Addr().String()
			break
		}
	}
	fmt.Fprintf(&b, "%s\t%s\n%s\n", self, p.Hostname, hostsEnd)
	ours := false
	for line := range strings.Lines(have) {
		switch text := strings.TrimSpace(line); {
		case text == hostsBegin:
			ours = true
		case text == hostsEnd:
			ours = false
		case !ours:
			b.WriteString(line)
		}
	}
	return b.String()
}

// resolvConf is the resolver's file: the user's wish, else what the host asks, less the
// addresses that mean the host itself and answer nobody else.
func resolvConf(dns vserver.DNS, host string) string {
	var b strings.Builder
	servers, search := dns.Servers, dns.Search
	if len(servers) == 0 {
		var hostSearch []string
		servers, hostSearch = parseResolver(host)
		if len(search) == 0 {
			search = hostSearch
		}
	}
	b.WriteString("# written by reflejo before every start\n")
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	return b.String()
}

func parseResolver(text string) (servers, search []string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "nameserver":
			a, err := netip.ParseAddr(f[1])
			if err == nil && !a.IsLoopback() && !a.IsUnspecified() && a.Zone() == "" && len(servers) < 3 {
				servers = append(servers, f[1])
			}
		case len(f) > 1 && (f[0] == "search" || f[0] == "domain"):
			search = f[1:]
		}
	}
	return servers, search
}

// timezone points /etc/localtime at the image's zone file, or brings the host's where
// the image has none.
func timezone(name string, inImage bool, fromHost string) ([]file, error) {
	if name == "" {
		name = "UTC"
	}
	if !validZone(name) {
		return nil, fault.Field("timezone", "set time zone: %q is not a name of the IANA database", name)
	}
	zone := file{Path: "/etc/localtime", Link: "/usr/share/zoneinfo/" + name}
	switch {
	case !inImage && fromHost != "":
		zone = file{Path: "/etc/localtime", Content: fromHost, Mode: 0o644}
	case !inImage && name == "UTC":
		zone = file{Path: "/etc/localtime", Remove: true} // no file means UTC
	case !inImage:
		return nil, fault.Field("timezone", "set time zone: neither the image nor the host has %q; install tzdata", name)
	}
	return []file{zone, {Path: "/etc/timezone", Content: name + "\n", Mode: 0o644}}, nil
}

// validZone: letters, digits and a few signs, in parts that are not dots.
func validZone(name string) bool {
	if len(name) > 64 {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' {
			return false
		}
		for _, c := range part {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("+-_.", c) {
				return false
			}
		}
	}
	return true
}

// unmanagedLinks tells the network services of the image to leave our interfaces alone:
// their addresses are set from outside, also while the server runs.
func unmanagedLinks(links []vserver.Link, t traits) []file {
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	slices.Sort(names)
	var out []file
	if t.Systemd && len(names) > 0 {
		out = append(out, file{Path: "/etc/systemd/network/00-reflejo.network", Mode: 0o644, Content: fmt.Sprintf(
			"# Configured by the host.\n[Match]\nName=%s\n\n[Link]\nUnmanaged=yes\n", strings.Join(names, " "))})
	}
	if t.NetworkManager && len(names) > 0 {
		out = append(out, file{Path: "/etc/NetworkManager/conf.d/00-reflejo.conf", Mode: 0o644, Content: fmt.Sprintf(
			"# Configured by the host.\n[keyfile]\nunmanaged-devices=interface-name:%s\n", strings.Join(names, ";interface-name:"))})
	}
	if t.Ifupdown {
		out = append(out, file{Path: "/etc/network/interfaces", Mode: 0o644, Content: "# Interfaces are configured by the host; what is added in interfaces.d is not.\nauto lo\niface lo inet loopback\nsource /etc/network/interfaces.d/*\n"})
	}
	return out
}

// firstBoot hands the first-boot data to whatever in the image can use it.
func firstBoot(p vserver.Preparation, t traits) ([]file, error) {
	data := p.FirstBoot.UserData
	script := strings.HasPrefix(data, "#!")
	switch {
	case len(data) > maxUserData:
		return nil, fault.Field("first_boot.user_data", "prepare first boot: %d bytes of user data, at most %d are possible", len(data), maxUserData)
	case t.CloudInit:
		return noCloud(p)
	case data == "":
		return nil, nil
	case !script:
		return nil, fault.Field("first_boot.user_data", "prepare first boot: the image has no cloud-init, so user data must be a script that begins with #!")
	}
	out := []file{{Path: firstBootScript, Content: data, Mode: 0o700}}
	if t.Systemd {
		out = append(out,
			file{Path: "/etc/systemd/system/" + firstBootUnitName, Content: firstBootUnit, Mode: 0o644},
			file{Path: "/etc/systemd/system/multi-user.target.wants/" + firstBootUnitName, Link: "../" + firstBootUnitName})
	}
	return out, nil
}

const firstBootUnitName = "reflejo-first-boot.service"

// firstBootUnit runs the script at most once: it is renamed before and deleted after.
const firstBootUnit = `[Unit]
Description=First-boot script
ConditionPathExists=` + firstBootScript + `
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStartPre=/bin/mv -f ` + firstBootScript + ` ` + firstBootScript + `.running
ExecStart=` + firstBootScript + `.running
ExecStopPost=/bin/rm -f ` + firstBootScript + `.running
TimeoutStartSec=infinity
StandardOutput=journal+console

[Install]
WantedBy=multi-user.target
`

// noCloud is a seed for cloud-init on the server's own disk. The network is described
// for programs that want to know, and cloud-init told not to configure it.
func noCloud(p vserver.Preparation) ([]file, error) {
	meta, err := json.Marshal(map[string]string{"instance-id": p.ID, "local-hostname": p.Hostname}) // JSON is YAML
	if err != nil {
		return nil, fmt.Errorf("encode meta-data: %w", err)
	}
	network, err := json.Marshal(networkData(p))
	if err != nil {
		return nil, fmt.Errorf("encode network-config: %w", err)
	}
	data := p.FirstBoot.UserData
	if data == "" {
		data = "#cloud-config\n{}\n"
	}
	const seed = "/var/lib/cloud/seed/nocloud/"
	return []file{
		{Path: "/etc/cloud/cloud.cfg.d/99-reflejo.cfg", Mode: 0o644, Content: "# The host brings the data and configures the network.\ndatasource_list: [NoCloud]\nnetwork: {config: disabled}\n"},
		{Path: seed + "network-config", Mode: 0o600, Content: string(network) + "\n"},
		{Path: seed + "user-data", Mode: 0o600, Content: data},
		{Path: seed + "meta-data", Mode: 0o600, Content: string(meta) + "\n"}, // last: with it the seed is complete
	}, nil
}

// networkData is cloud-init's network configuration, version 2.
func networkData(p vserver.Preparation) any {
	type route struct {
		To  string `json:"to"`
		Via string `json:"via"`
	}
	type ethernet struct {
		Match       map[string]string   `json:"match,omitempty"`
		Addresses   []string            `json:"addresses,omitempty"`
		Routes      []route             `json:"routes,omitempty"`
		Nameservers map[string][]string `json:"nameservers,omitempty"`
	}
	ethernets := map[string]ethernet{}
	for _, l := range p.Links {
		var e ethernet
		if l.MAC != "" {
			e.Match = map[string]string{"macaddress": l.MAC}
		}
		if l.Address.IsValid() {
			e.Addresses = []string{l.Address.String()}
		}
		if l.Gateway.IsValid() {
			e.Routes = []route{{To: "0.0.0.0/0", Via: l.Gateway.String()}}
		}
		if len(p.DNS.Servers) > 0 {
			e.Nameservers = map[string][]string{"addresses": p.DNS.Servers}
		}
		ethernets[l.Name] = e
	}
	return map[string]any{"version": 2, "ethernets": ethernets}
}
