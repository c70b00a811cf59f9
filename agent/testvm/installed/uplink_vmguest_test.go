//go:build linux && vmguest

package installed

import (
	"os"
	"strings"
	"testing"
)

// The machine has no network: the world is a network namespace behind the uplink.
const uplinkScript = `#!/bin/sh
set -e
ip netns add world
ip link add uplink type veth peer name host netns world
ip addr add 198.51.100.2/24 dev uplink
ip link set uplink up
ip route add default via 198.51.100.1
ip -n world addr add 198.51.100.1/24 dev host
ip -n world link set host up
ip -n world link set lo up
`

// Before network-online.target, as on any host, at every boot.
const uplinkUnit = `[Unit]
DefaultDependencies=no
After=local-fs.target
Before=network.target network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /etc/uplink.sh
[Install]
WantedBy=network-online.target multi-user.target
`

func uplink(t *testing.T) {
	t.Helper()
	must(t, os.WriteFile("/etc/uplink.sh", []byte(uplinkScript), 0o755))
	must(t, os.WriteFile("/etc/systemd/system/uplink.service", []byte(uplinkUnit), 0o644))
	run(t, "systemctl", "enable", "--now", "uplink.service")
}

// networkWorks: the server reaches the world by NAT, and the world the server's published
// port on the host, but not the agent from the server.
func networkWorks(t *testing.T) {
	inside(t, "web", "ping -c1 -W20 198.51.100.1 >/dev/null")
	inside(t, "web", "(echo hello | nc -l -p 80 >/dev/null 2>&1 &) </dev/null >/dev/null 2>&1")
	eventually(t, func() error {
		out, err := command("ip", "netns", "exec", "world", "busybox", "nc", "-w", "20", "198.51.100.2", "8080").Output()
		if err == nil && strings.TrimSpace(string(out)) != "hello" {
			t.Fatalf("the published port said %q", out)
		}
		return err
	})
	if out, err := command("reflejo", "server", "exec", "-n", "web", "--", "nc", "-w", "3", "198.51.100.2", "7443").CombinedOutput(); err == nil {
		t.Errorf("the server reaches the agent: %q", out)
	}
}
