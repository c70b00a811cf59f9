package bridge

import (
	"fmt"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// serverPlan is all that is wanted of one server.
type serverPlan struct {
	rules  batch
	digest string // of the rules; the kernel keeps it with them
	ports  []portPlan
}

// portPlan is one interface of it.
type portPlan struct {
	link       vserver.Link
	id         portID
	bridge     string
	mtu        int
	down, up   rate // towards the server, from it
	shapeDown  bool
	shapeUp    bool
	network    string
	gatewayMAC string
}

// planServer decides everything about a server; the networks' MTUs are decided already.
func planServer(w vserver.ServerNetwork, c Config, networks map[string]vserver.Network) (serverPlan, error) {
	if err := checkServer(w, c, networks); err != nil {
		return serverPlan{}, err
	}
	p := serverPlan{}
	for _, l := range w.NICs {
		n := networks[l.NetworkID]
		rules, err := portRules(w.ID, l, n, c.ConnectionsPerNIC)
		if err != nil {
			return serverPlan{}, err
		}
		p.rules.merge(rules)
		port := portPlan{link: l, id: portID{w.ID, l.Name}, bridge: bridgeName(n.ID), network: n.ID, mtu: n.MTU, gatewayMAC: gatewayMAC(n.ID, n.Gateway).String()}
		port.down, port.shapeDown = nicRate(l.Ingress, c.HostIngress)
		port.up, port.shapeUp = nicRate(l.Egress, c.HostEgress)
		p.ports = append(p.ports, port)
	}
	p.rules.merge(publishRules(w.ID, w.NICs))
	p.digest = p.rules.digest()
	for i, e := range p.rules.elements {
		if e.set == mapFromPort {
			p.rules.elements[i].note = p.digest
		}
	}
	return p, nil
}

// String is the plan as an operator would read it.
func (p serverPlan) String() string {
	var s strings.Builder
	for _, q := range p.ports {
		l := q.link
		fmt.Fprintf(&s, "link %s on %s mtu %d peer %s %s %s", q.id.link(), q.bridge, q.mtu, l.Name, l.MAC, l.Address)
		if l.Gateway.IsValid() {
			fmt.Fprintf(&s, " default via %s", l.Gateway)
		}
		s.WriteString("\n")
		if q.shapeDown {
			fmt.Fprintf(&s, "    down %s\n", q.down)
		}
		if q.shapeUp {
			fmt.Fprintf(&s, "    up %s\n", q.up)
		}
	}
	s.WriteString(p.rules.String())
	return s.String()
}

// publishes are the host ports that the server gets.
func (p serverPlan) publishes() []publishKey {
	var out []publishKey
	for _, q := range p.ports {
		for _, x := range q.link.Publish {
			out = append(out, keyOf(x))
		}
	}
	return out
}
