package bridge

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// How long what a filtered server began may be silent before its answers are unknown. TCP
// outlasts keep-alive's two hours; a closing or beginning connection is short.
const (
	flowTCP   = 2*time.Hour + 15*time.Minute
	flowBrief = time.Minute
	flowUDP   = 3 * time.Minute
	flowsSize = 65536

	icmpRedirect = 5
)

// Sets and maps of the skeleton.
const (
	setBridges   = "bridges"   // all our bridges
	setSame      = "same"      // bridge . the same bridge
	setNAT       = "nat"       // bridges whose servers are masqueraded
	setPeers     = "peers"     // other hosts' underlay addresses
	setGuarded   = "guarded"   // agents' ports
	setVNIs      = "vnis"      // VXLAN segments of ours
	setVTEPs     = "vteps"     // segment . who may send to it
	mapHairpin   = "hairpin"   // bridge → its masquerading of published ports
	mapTracked   = "tracked"   // bridge . server's address → bound of connections
	mapPublished = "published" // protocol . host port → server
	mapFromPort  = "from_port" // host end → what the server may send
	mapToPort    = "to_port"   // host end → what it may get
)

// skeleton is what there is without any network: base chains and empty sets.
func skeleton(c Config) batch {
	b := batch{sets: []set{
		{family: inet, name: setBridges, keys: []field{iifname}},
		{family: inet, name: setSame, keys: []field{iifname, oifname}},
		{family: inet, name: setNAT, keys: []field{iifname}},
		{family: inet, name: setPeers, keys: []field{ipSrc}},
		{family: inet, name: setGuarded, keys: []field{thDst}},
		{family: inet, name: setVNIs, keys: []field{vxlanVNI}},
		{family: inet, name: setVTEPs, keys: []field{vxlanVNI, ipSrc}},
		{family: inet, name: mapHairpin, keys: []field{oifname}, verdict: true},
		{family: inet, name: mapTracked, keys: []field{iifname, ipSrc}, verdict: true},
		{family: inet, name: mapPublished, keys: []field{l4proto, thDst}, verdict: true},
		{family: bridge, name: mapFromPort, keys: []field{iifname}, verdict: true},
		{family: bridge, name: mapToPort, keys: []field{oifname}, verdict: true},
	}}
	for _, p := range c.GuardedPorts {
		b.elements = append(b.elements, element{family: inet, set: setGuarded, key: u16(p), label: strconv.Itoa(int(p))})
	}
	b.chains = append(routedChains(c), portChains()...)
	return b
}

// routedChains decide about packets that the host routes, takes or makes itself.
func routedChains(c Config) []chain {
	onBridge := member{fields: []field{iifname}, set: setBridges}
	toBridge := member{fields: []field{oifname}, set: setBridges}
	offBridge := member{fields: []field{oifname}, set: setBridges, not: true}
	answer, published := ctState{stateAnswer}, ctStatus{statusDNAT}
	from := dispatch{[]field{iifname, ipSrc}, mapTracked}
	to := dispatch{[]field{oifname, ipDst}, mapTracked}
	publish := line(ipv4{}, toHost{}, compare{f: ipDst, not: true, mask: []byte{0xff, 0, 0, 0}, value: []byte{127, 0, 0, 0}},
		dispatch{[]field{l4proto, thDst}, mapPublished})

	leave := []rule{
		// A guest's datagram to a VTEP, masqueraded, would be a host's own.
		line(is(l4proto, []byte{protoUDP}), is(thDst, u16(vxlanPort)), drop),
		// Else the server's own address could get out where NAT lost track.
		line(ctState{stateInvalid}, drop),
		line(ipv4{}, is(l4proto, []byte{protoTCP}), member{fields: []field{thDst}, set: setGuarded}, member{fields: []field{ipDst}, set: setPeers}, drop),
		line(answer, accept),
		line(published, accept),
		line(toBridge, drop),
	}
	if c.Uplink != "" {
		leave = append(leave, line(isNot(oifname, ifname(c.Uplink)), drop))
	}
	return []chain{
		{family: inet, name: "from_servers", rules: leave},
		{family: inet, name: "to_servers", rules: []rule{
			line(answer, accept),
			line(published, accept),
			line(member{fields: []field{oifname}, set: setNAT}, drop),
		}},
		{family: inet, name: "to_host", rules: []rule{
			line(answer, accept),
			line(ipv4{}, from),
			line(is(l4proto, []byte{protoICMP}), is(icmpType, []byte{8}), accept),
			line(drop),
		}},
		// Link-local group addresses bypass the bridge: what they carry must not become the host's.
		{family: inet, name: "raw", hook: &hook{"filter", "prerouting", -350}, rules: []rule{line(is(iifname, []byte(portPrefix)), drop)}},
		{family: inet, name: "prerouting", hook: &hook{"nat", "prerouting", -100}, rules: []rule{publish}},
		{family: inet, name: "output", hook: &hook{"nat", "output", -100}, rules: []rule{publish}},
		{family: inet, name: "input", hook: &hook{"filter", "input", 0}, rules: []rule{
			line(ipv4{}, is(l4proto, []byte{protoUDP}), is(thDst, u16(vxlanPort)), member{fields: []field{vxlanVNI}, set: setVNIs},
				member{fields: []field{vxlanVNI, ipSrc}, set: setVTEPs, not: true}, drop),
			line(onBridge, jump("to_host")),
		}},
		{family: inet, name: "forward", hook: &hook{"filter", "forward", 0}, rules: []rule{
			line(ipv4{}, from),
			line(ipv4{}, to),
			line(member{fields: []field{iifname, oifname}, set: setSame}, accept),
			line(onBridge, jump("from_servers")),
			line(toBridge, jump("to_servers")),
		}},
		{family: inet, name: "postrouting", hook: &hook{"nat", "postrouting", 100}, rules: []rule{
			line(dispatch{[]field{oifname}, mapHairpin}),
			line(offBridge, member{fields: []field{iifname}, set: setNAT}, masquerade{}),
		}},
	}
}

// portChains decide about frames at the ports of bridges. A port of ours that no chain is
// there for carries nothing: that is how one looks that is being made or removed.
func portChains() []chain {
	to := []rule{line(dispatch{[]field{oifname}, mapToPort}), line(is(oifname, []byte(portPrefix)), drop)}
	return []chain{
		{family: bridge, name: "prerouting", hook: &hook{"filter", "prerouting", -310}, rules: []rule{
			line(dispatch{[]field{iifname}, mapFromPort}), line(is(iifname, []byte(portPrefix)), drop)}},
		{family: bridge, name: "input", hook: &hook{"filter", "input", -210}, rules: []rule{
			line(is(iifname, []byte(portPrefix)), compare{f: etherDst, mask: []byte{255, 255, 255, 255, 255, 0xf0},
				value: []byte{0x01, 0x80, 0xc2, 0, 0, 0}}, drop)}},
		{family: bridge, name: "forward", hook: &hook{"filter", "forward", -210}, rules: to},
		{family: bridge, name: "output", hook: &hook{"filter", "output", -210}, rules: to},
	}
}

// networkRules are a network's own; old is how it was, so that what it had is removed.
func networkRules(n vserver.Network, old *vserver.Network) batch {
	br := bridgeName(n.ID)
	hairpin := chain{family: inet, name: "hairpin/" + n.ID, rules: []rule{
		// A neighbour's packet by way of a published port must return by the same way.
		line(ipv4{}, ctStatus{statusDNAT}, within(ipSrc, n.CIDR.Masked()), masquerade{})}}
	b := batch{chains: []chain{hairpin}, elements: []element{
		named(inet, setBridges, br),
		{family: inet, set: setSame, key: append(ifname(br), ifname(br)...), label: br + " . " + br},
		{family: inet, set: mapHairpin, key: ifname(br), label: br, jump: hairpin.name},
	}}
	if n.NAT {
		b.elements = append(b.elements, named(inet, setNAT, br))
	} else {
		b.goneElements = append(b.goneElements, named(inet, setNAT, br))
	}
	if old != nil && len(old.Peers) > 0 {
		b.goneElements = append(b.goneElements, vtepElements(*old)...)
	}
	if len(n.Peers) > 0 {
		b.elements = append(b.elements, vtepElements(n)...)
	}
	return b
}

// noNetworkRules removes a network's rules.
func noNetworkRules(n vserver.Network) batch {
	b := networkRules(n, nil)
	return batch{goneElements: append(b.elements, b.goneElements...), goneChains: b.chains}
}

func named(f family, set, link string) element {
	return element{family: f, set: set, key: ifname(link), label: link}
}

func vtepElements(n vserver.Network) []element {
	vni := pad([]byte{byte(n.VNI >> 16), byte(n.VNI >> 8), byte(n.VNI)})
	text := strconv.Itoa(int(n.VNI))
	out := []element{{family: inet, set: setVNIs, key: vni, label: text}}
	for _, p := range n.Peers {
		out = append(out, element{family: inet, set: setVTEPs, key: append(append([]byte{}, vni...), ip4(p)...), label: text + " . " + p.String()})
	}
	return out
}

// peerElements are the hosts of all networks.
func peerElements(peers []netip.Addr) []element {
	var out []element
	for _, p := range peers {
		out = append(out, element{family: inet, set: setPeers, key: ip4(p), label: p.String()})
	}
	return out
}

// portRules are the rules of one interface. n is its network.
func portRules(server string, l vserver.Link, n vserver.Network, connections uint32) (batch, error) {
	p := portID{server, l.Name}
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return batch{}, err
	}
	openings, err := openingsOf(l)
	if err != nil {
		return batch{}, err
	}
	flows := flowsOf(p)
	from := chain{family: bridge, name: chainOf("from", p), rules: fromRules(mac, l, n)}
	to := chain{family: bridge, name: chainOf("to", p), rules: []rule{
		// The port sends back what came in by it (a server that uses its own published port,
		// where br_netfilter is on), but what was for everybody is no news to its sender.
		line(is(etherSrc, mac), compare{f: etherDst, not: true, mask: []byte{1, 0, 0, 0, 0, 0}, value: make([]byte, 6)}, drop),
		line(is(etherType, u16(typeARP)), accept),
		line(isNot(etherType, u16(typeIPv4)), drop),
		line(is(ipProto, []byte{protoICMP}), is(icmpType, []byte{icmpRedirect}), drop), // the host's would lead past NAT
	}}
	b := batch{}
	if l.Filtered {
		from.rules = append(from.rules, rememberRules(openings, flows.name)...)
		to.rules = append(to.rules, admitRules(openings, flows.name)...)
		b.sets = append(b.sets, flows)
	}
	from.rules = append(from.rules, line(accept))
	if l.Filtered {
		to.rules = append(to.rules, line(drop))
	} else {
		to.rules = append(to.rules, line(accept))
	}
	tracked := chain{family: inet, name: chainOf("tracked", p), keep: true, rules: trackedRules(connections)}
	b.chains = append(b.chains, from, to, tracked)
	b.elements = append(b.elements,
		element{family: bridge, set: mapFromPort, key: ifname(p.link()), label: p.link(), jump: from.name},
		element{family: bridge, set: mapToPort, key: ifname(p.link()), label: p.link(), jump: to.name},
		trackedElement(p, l.NetworkID, l.Address.Addr()))
	return b, nil
}

// flowsOf is the memory of what a filtered interface began.
func flowsOf(p portID) set {
	return set{family: bridge, name: chainOf("flows", p), keys: []field{ipSrc, ipProto, thSrc, thDst}, dynamic: true, size: flowsSize}
}

func trackedRules(n uint32) []rule { return []rule{line(ctState{stateNew}, connections{n}, drop)} }

func trackedElement(p portID, network string, a netip.Addr) element {
	br := bridgeName(network)
	chain := chainOf("tracked", p)
	return element{family: inet, set: mapTracked, key: append(ifname(br), ip4(a)...), label: br + " . " + a.String(), jump: chain, note: chain}
}

// noPortRules removes what portRules made, given where the interface was.
func noPortRules(note portNote, network string) batch {
	p := note.portID
	b := batch{
		goneChains: []chain{{family: bridge, name: chainOf("from", p)}, {family: bridge, name: chainOf("to", p)}, {family: inet, name: chainOf("tracked", p)}},
		goneSets:   []set{flowsOf(p)},
		goneElements: []element{
			{family: bridge, set: mapFromPort, key: ifname(p.link()), label: p.link(), jump: chainOf("from", p)},
			{family: bridge, set: mapToPort, key: ifname(p.link()), label: p.link(), jump: chainOf("to", p)},
		},
	}
	if network != "" && note.Address.IsValid() {
		b.goneElements = append(b.goneElements, trackedElement(p, network, note.Address.Addr()))
	}
	return b
}

// fromRules let through what a server may send at all: IPv4 and ARP in its own name.
func fromRules(mac net.HardwareAddr, l vserver.Link, n vserver.Network) []rule {
	own := ip4(l.Address.Addr())
	rules := []rule{
		line(isNot(etherSrc, mac), drop),
		line(is(etherType, u16(typeARP)), is(arpHeader, []byte{0, 1, 8, 0, 6, 4}), is(arpMAC, mac), is(arpIP, own), accept),
		line(isNot(etherType, u16(typeIPv4)), drop),
		line(isNot(ipSrc, own), drop),
	}
	// Neighbours are reached directly. By way of the gateway they would make the host ask for
	// addresses that nobody has, until its neighbour table is full.
	return append(rules, line(is(etherDst, gatewayMAC(n.ID, n.Gateway)), within(ipDst, n.CIDR.Masked()), isNot(ipDst, ip4(n.Gateway)), drop))
}

// opening is one thing that may come in to a filtered interface.
type opening struct {
	from   netip.Prefix // all of IPv4 means anybody
	proto  byte         // 0 means any
	lo, hi uint16       // 0 means any port
}

var anybody = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// match is the opening seen from outside (dir in) or mirrored, in the answers' direction.
func (o opening) match(addr, port field) []term {
	var t []term
	if o.proto != 0 {
		t = append(t, is(ipProto, []byte{o.proto}))
	}
	t = append(t, within(addr, o.from)...)
	switch {
	case o.lo == 0:
	case o.lo == o.hi:
		t = append(t, is(port, u16(o.lo)))
	default:
		t = append(t, between{port, u16(o.lo), u16(o.hi)})
	}
	return t
}

// openingsOf reads what a link allows and publishes.
func openingsOf(l vserver.Link) ([]opening, error) {
	var out []opening
	for i, a := range l.Allow {
		at := "network." + l.Name + ".allow[" + strconv.Itoa(i) + "]"
		from := anybody
		if a.From != "" {
			p, err := netip.ParsePrefix(a.From)
			if err != nil || !p.Addr().Is4() {
				return nil, fault.Field(at+".from", "%q is no IPv4 range such as 10.0.0.0/8", a.From)
			}
			from = p.Masked()
		}
		lo, hi, err := ports(a.Ports)
		if err != nil {
			return nil, fault.Field(at+".ports", "%v", err)
		}
		protos, ok := protocols(a.Protocol, lo != 0)
		if !ok {
			return nil, fault.Field(at+".protocol", "%q: must be tcp, udp or icmp, and ports belong to tcp and udp", a.Protocol)
		}
		for _, proto := range protos {
			out = append(out, opening{from, proto, lo, hi})
		}
	}
	for _, p := range l.Publish {
		proto, _ := protocols(p.Protocol, true)
		out = append(out, opening{anybody, proto[0], uint16(p.Port), uint16(p.Port)})
	}
	return out, nil
}

func protocols(name string, withPorts bool) ([]byte, bool) {
	switch {
	case name == "tcp":
		return []byte{protoTCP}, true
	case name == "udp":
		return []byte{protoUDP}, true
	case name == "icmp" && !withPorts:
		return []byte{protoICMP}, true
	case name == "" && withPorts:
		return []byte{protoTCP, protoUDP}, true
	case name == "":
		return []byte{0}, true
	}
	return nil, false
}

// ports reads "", "80" and "8000-8010"; 0 means any.
func ports(s string) (lo, hi uint16, err error) {
	if s == "" {
		return 0, 0, nil
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, err1 := strconv.ParseUint(first, 10, 16)
	z, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || a == 0 || a > z {
		return 0, 0, fault.New(fault.Invalid, "%q is no port or range of ports such as 8000-8010", s)
	}
	return uint16(a), uint16(z), nil
}

// rememberRules note what a filtered server begins. Answers from its open ports are let
// through before: they need no memory, and must not use up the set's room.
func rememberRules(openings []opening, flows string) []rule {
	key := []field{ipDst, ipProto, thDst, thSrc}
	var rules []rule
	for _, o := range openings {
		rules = append(rules, line(o.match(ipDst, thSrc), accept))
	}
	tcp, udp := is(ipProto, []byte{protoTCP}), is(ipProto, []byte{protoUDP})
	return append(rules,
		line(tcp, compare{f: tcpFlags, not: true, mask: []byte{0x07}, value: []byte{0}}, remember{key, flows, flowBrief}, accept), // fin, syn, rst
		line(tcp, remember{key, flows, flowTCP}, accept),
		line(udp, remember{key, flows, flowUDP}, accept),
	)
}

// admitRules let in what a filtered server allows, and answers.
func admitRules(openings []opening, flows string) []rule {
	icmp := is(ipProto, []byte{protoICMP})
	rules := []rule{
		// Later fragments have no ports; without the first one, which is judged, they are nothing.
		line(compare{f: ipFrag, not: true, mask: fragmentsMask, value: []byte{0, 0}}, accept),
		line(member{fields: []field{ipSrc, ipProto, thSrc, thDst}, set: flows}, accept),
	}
	for _, t := range []byte{0, 3, 11, 12} { // echo reply, unreachable, time exceeded, bad header
		rules = append(rules, line(icmp, is(icmpType, []byte{t}), accept))
	}
	for _, o := range openings {
		rules = append(rules, line(o.match(ipSrc, thDst), accept))
	}
	return rules
}

// publishRules send published ports of the host to a server.
func publishRules(server string, links []vserver.Link) batch {
	c := chain{family: inet, name: "publish/" + server}
	b := batch{}
	for _, l := range links {
		for _, p := range l.Publish {
			k := keyOf(p)
			c.rules = append(c.rules, line(is(l4proto, []byte{k.proto}), is(thDst, u16(k.port)), dnat{l.Address.Addr(), uint16(p.Port)}))
			b.elements = append(b.elements, k.element(server))
		}
	}
	if len(c.rules) > 0 {
		b.chains = append(b.chains, c)
	}
	return b
}

// noPublishRules take host ports back; last tells that the server publishes nothing else.
func noPublishRules(server string, gone []publishKey, last bool) batch {
	b := batch{}
	for _, k := range gone {
		b.goneElements = append(b.goneElements, k.element(server))
	}
	if last && len(gone) > 0 {
		b.goneChains = []chain{{family: inet, name: "publish/" + server}}
	}
	return b
}

// publishKey is a host port of a protocol.
type publishKey struct {
	proto byte
	port  uint16
}

func keyOf(p vserver.Publish) publishKey {
	proto, _ := protocols(p.Protocol, true)
	return publishKey{proto[0], uint16(p.HostPort)}
}

func (k publishKey) String() string {
	return showProto([]byte{k.proto}) + " " + strconv.Itoa(int(k.port))
}

func (k publishKey) element(server string) element {
	return element{family: inet, set: mapPublished, key: append(pad([]byte{k.proto}), pad(u16(k.port))...),
		label: showProto([]byte{k.proto}) + " . " + strconv.Itoa(int(k.port)), jump: "publish/" + server, note: server}
}
