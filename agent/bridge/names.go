package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Prefixes of our links. Nothing without one of them is ever touched.
const (
	bridgePrefix = "rfb"
	vxlanPrefix  = "rfx"
	portPrefix   = "rfv" // a server's host end
	ifbDown      = "rfi-down"
	ifbUp        = "rfi-up"
)

var (
	idPattern  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	nicPattern = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]{0,14}$`)
)

// linkName is a name of 15 characters, the longest the kernel has.
func linkName(prefix, key string) string {
	sum := sha256.Sum256([]byte(key))
	return prefix + hex.EncodeToString(sum[:6])
}

func bridgeName(network string) string     { return linkName(bridgePrefix, network) }
func vxlanName(network string) string      { return linkName(vxlanPrefix, network) }
func portName(server, nic string) string   { return linkName(portPrefix, server+"/"+nic) }
func networkAlias(network string) string   { return "reflejo network " + network }
func chainOf(kind string, p portID) string { return kind + "/" + p.Server + "/" + p.NIC }

// gatewayMAC is a bridge's own address: stable, whatever ports come and go, and different on
// every host of a network, since each has its own gateway address.
func gatewayMAC(network string, gateway netip.Addr) net.HardwareAddr {
	sum := sha256.Sum256([]byte(network + "/" + gateway.String()))
	return net.HardwareAddr{0x0a, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

// portID names one interface of one server.
type portID struct{ Server, NIC string }

func (p portID) link() string { return portName(p.Server, p.NIC) }

// portNote is what the host end's alias says: enough to find and change the interface after
// a restart, and of use to people who run `ip link`.
type portNote struct {
	portID
	Class   uint16 // of shaping; 0 means none yet
	MAC     string
	Address netip.Prefix
	Gateway netip.Addr // invalid means none
}

func (n portNote) String() string {
	gw := "-"
	if n.Gateway.IsValid() {
		gw = n.Gateway.String()
	}
	return fmt.Sprintf("reflejo server %s %s class %d %s %s via %s", n.Server, n.NIC, n.Class, n.MAC, n.Address, gw)
}

// parsePortNote reads an alias that String wrote.
func parsePortNote(alias string) (portNote, bool) {
	f := strings.Fields(alias)
	if len(f) != 10 || f[0] != "reflejo" || f[1] != "server" || f[4] != "class" || f[8] != "via" {
		return portNote{}, false
	}
	n := portNote{portID: portID{f[2], f[3]}, MAC: f[6]}
	class, err := strconv.ParseUint(f[5], 10, 16)
	if err != nil {
		return portNote{}, false
	}
	n.Class = uint16(class)
	if n.Address, err = netip.ParsePrefix(f[7]); err != nil {
		return portNote{}, false
	}
	if f[9] != "-" {
		if n.Gateway, err = netip.ParseAddr(f[9]); err != nil {
			return portNote{}, false
		}
	}
	return n, true
}

func noteOf(server string, l vserver.Link, class uint16) portNote {
	return portNote{portID: portID{server, l.Name}, Class: class, MAC: l.MAC, Address: l.Address, Gateway: l.Gateway}
}

// announcement is a gratuitous ARP request as a frame.
func announcement(mac net.HardwareAddr, a netip.Addr) []byte {
	f := []byte{255, 255, 255, 255, 255, 255}
	f = append(f, mac...)
	f = append(f, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1)
	f = append(f, mac...)
	f = append(f, ip4(a)...)
	f = append(f, 0, 0, 0, 0, 0, 0)
	return append(f, ip4(a)...)
}

// sortedKeys are a map's keys in order.
func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}
