package testbed

import (
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
)

// Every host of a machine has user and group ids of its own, as the kernel counts some
// things per user, whatever the namespace.
const (
	idRangeFirst = 100 << 16
	idRangeCount = 256 << 16 // servers have 1 << 16 each
	idRangeSlots = 240       // hosts that fit below 2³²
)

// endpointPort is where agents listen for each other, their default.
const endpointPort = 7444

// agentConfig is the text of a host's agent.hcl. The hosts share the machine's memory and
// disk, so each promises a part of it; they do not share out the cores, which an idle host
// would waste.
func (n names) agentConfig(host, imageDir string) string {
	bed := int(crc32.ChecksumIEEE([]byte(n.Name))) % (idRangeSlots / len(Hosts))
	slot := bed*len(Hosts) + slices.Index(Hosts, host)
	reserve := n.ReserveMemory
	if reserve == "" {
		reserve = "70%"
	}
	return fmt.Sprintf(`name             = %q
listen           = %q
underlay_address = %q
state_dir        = %q
run_dir          = %q
cgroup_parent    = %q
image_dirs       = [%q, %q]

insecure_registries = ["%s:%d"]

tls {
  ca_file   = %q
  cert_file = %q
  key_file  = %q
}
log {
  level = "debug"
}
pool {
  path = %q
}
reserve {
  cpu    = "0"
  memory = %q
}
network {
  uplink  = %q
  ingress = "10gbit"
  egress  = "10gbit"
}
id_range {
  first = %d
  count = %d
}
backup {
  dirs  = [%q]
  store = %q
}
%s%s`,
		host, Endpoint(host), Address(host),
		n.hostPath(host, "state"), n.runDir(host), n.cgroup(host), imageDir, n.path("images"),
		Address(Operator), RegistryPort,
		n.path("pki", "ca.crt"), n.path("pki", host+".crt"), n.path("pki", host+".key"),
		n.hostPath(host, "pool"), reserve, linkName,
		idRangeFirst+slot*idRangeCount, idRangeCount,
		n.path("backups"), n.hostPath(host, "backups"), otherHosts(host), n.AgentSettings)
}

// otherHosts tells a host's agent where the others' agents reach each other.
func otherHosts(host string) string {
	var text strings.Builder
	for _, other := range Hosts {
		if other != host {
			fmt.Fprintf(&text, "host %q {\n  endpoint = \"%s:%d\"\n}\n", other, Address(other), endpointPort)
		}
	}
	return text.String()
}
