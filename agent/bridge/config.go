package bridge

import (
	"fmt"
	"net/netip"

	"github.com/hashicorp/go-hclog"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Config is what a Manager is made of. The zero value works: everything may be left out.
type Config struct {
	// Uplink is the one interface by which servers may leave the host, "" means every
	// interface that the host's routes name.
	Uplink string
	// HostIngress and HostEgress bound, in bits per second, the sum of what all servers
	// together get and send; 0 means unlimited.
	HostIngress int64
	HostEgress  int64
	// GuardedPorts are TCP ports of agents (API, endpoint). Servers can't publish them here
	// or reach them on this host and on the hosts that networks span.
	GuardedPorts []uint16
	// Underlay is the host's own address for VXLAN; it is needed once a network has peers.
	Underlay netip.Addr
	// ConnectionsPerNIC bounds the tracked connections of one interface; 0 means 32768.
	ConnectionsPerNIC uint32
	Log               hclog.Logger
}

const defaultConnections = 32768

// hostConnections is how many tracked connections the host should have room for at least.
const hostConnections = 1 << 20

func (c *Config) defaults() error {
	if c.HostIngress < 0 || c.HostEgress < 0 {
		return fault.New(fault.Invalid, "host bandwidth %d and %d: must not be negative", c.HostIngress, c.HostEgress)
	}
	if c.Underlay.IsValid() && !c.Underlay.Is4() {
		return fault.New(fault.Invalid, "underlay address %s: must be IPv4", c.Underlay)
	}
	if len(c.Uplink) > 15 {
		return fault.New(fault.Invalid, "uplink %q: no interface has such a name", c.Uplink)
	}
	if c.ConnectionsPerNIC == 0 {
		c.ConnectionsPerNIC = defaultConnections
	}
	if c.Log == nil {
		c.Log = hclog.NewNullLogger()
	}
	return nil
}

func (c *Config) guarded(port int) bool {
	for _, p := range c.GuardedPorts {
		if int(p) == port {
			return true
		}
	}
	return false
}

// classes is how many interfaces one host can shape.
const classes = 4095

func errNoClass() error {
	return fault.New(fault.Exhausted, "shape interface: asked 1, free 0 of %d traffic classes", classes)
}

func wrapf(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
}
