package testbed

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
)

// Hosts are the names of the hosts, in the order of their addresses.
var Hosts = []string{"alpha", "beta", "gamma"}

// Operator is the name of the place that commands are run from.
const Operator = "operator"

// APIPort is where every agent listens.
const APIPort = 7443

// RegistryPort is where tests and the demo run an image registry in the operator's place;
// the agents speak to it without TLS.
const RegistryPort = 5000

// linkName is every place's interface.
const linkName = "eth0"

// netnsDir is where `ip netns` looks for network namespaces.
const netnsDir = "/run/netns"

// runRoot has the directories that hosts mount their file system for a boot on.
const runRoot = "/run/reflejo-testbed"

// prefixBits is the length of the management network's prefix, 198.18.0.0/24.
const prefixBits = 24

// Config says where a bed is and what it runs.
type Config struct {
	// Name tells the beds of one machine apart, at most 8 letters and digits. The bed ""
	// has the plain names (network namespace "alpha"), bed "x" has "x-alpha".
	Name string
	// Dir is the directory that holds everything of the bed. Down removes it.
	Dir string
	// Bin is the directory with the programs reflejo and terraform-provider-reflejo.
	Bin string
	// Hosts are the hosts to make, a part of [Hosts]; empty means all.
	Hosts []string
	// ReserveMemory is what each agent leaves to the machine, which the hosts share: an amount
	// or a share in percent. Empty means "70%".
	ReserveMemory string
	// AgentSettings is HCL that is added to every agent's configuration.
	AgentSettings string
	// AgentEnv is added to every agent's environment ("NAME=value").
	AgentEnv []string
}

// names are the kernel-wide names of a bed, and its paths.
type names struct{ Config }

func (n names) hosts() []string {
	if len(n.Hosts) == 0 {
		return Hosts
	}
	return n.Hosts
}

// places are the hosts and the operator: everything with an address.
func (n names) places() []string { return append(slices.Clone(n.hosts()), Operator) }

// prefixed is a kernel-wide name.
func (n names) prefixed(name string) string {
	if n.Name == "" {
		return name
	}
	return n.Name + "-" + name
}

// netns is where a place's network namespace is pinned, as `ip netns` does.
func (n names) netns(place string) string { return filepath.Join(netnsDir, n.prefixed(place)) }

// cgroup is the parent control group of a host's servers, below the root of each hierarchy.
func (n names) cgroup(host string) string {
	if n.Name == "" {
		return "reflejo-" + host
	}
	return "reflejo-" + n.Name + "-" + host
}

func (n names) path(parts ...string) string {
	return filepath.Join(append([]string{n.Dir}, parts...)...)
}
func (n names) hostPath(host string, parts ...string) string {
	return n.path(append([]string{"hosts", host}, parts...)...)
}
func (n names) runDir(host string) string {
	return filepath.Join(runRoot, n.prefixed(host))
}
func (n names) logFile(host string) string { return n.path("logs", host+".log") }

// pinDir is a private file system that pins the hosts' mount namespaces.
func (n names) pinDir() string             { return n.path("ns") }
func (n names) mountns(host string) string { return filepath.Join(n.pinDir(), host) }

// Address is the management address of a host or of the operator.
func Address(place string) netip.Addr {
	last := 10
	if i := slices.Index(Hosts, place); i >= 0 {
		last = 11 + i
	}
	return netip.AddrFrom4([4]byte{198, 18, 0, byte(last)})
}

// Endpoint is where a host's agent listens, "address:port".
func Endpoint(host string) string { return fmt.Sprintf("%s:%d", Address(host), APIPort) }

// hardwareAddr is a place's fixed MAC address: the others' neighbour tables stay right when
// a host is booted anew.
func hardwareAddr(place string) net.HardwareAddr {
	a := Address(place).As4()
	return net.HardwareAddr{0x02, 0x72, a[0], a[1], a[2], a[3]}
}

// check refuses a configuration that would make names the kernel or others can't tell apart.
func (c Config) check() error {
	if len(c.Name) > 8 {
		return fmt.Errorf("name %q of the testbed is longer than 8", c.Name)
	}
	for _, r := range c.Name {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return fmt.Errorf("name %q of the testbed has characters other than a-z and 0-9", c.Name)
		}
	}
	for _, h := range c.Hosts {
		if !slices.Contains(Hosts, h) {
			return fmt.Errorf("host %q is unknown: use %v", h, Hosts)
		}
	}
	if !filepath.IsAbs(c.Dir) || !filepath.IsAbs(c.Bin) {
		return fmt.Errorf("directories %q and %q of the testbed must be absolute", c.Dir, c.Bin)
	}
	return nil
}
