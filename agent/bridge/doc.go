// Package bridge is the network edge: it implements vserver.Networks with links,
// nf_tables rules and traffic control of the network namespace in which it was opened.
//
// A network is a bridge (rfb…); a network with peers has a VXLAN port (rfx…) on it. A
// server's interface is a veth pair, its host end (rfv…) a port of the bridge.
//
// What a packet meets, in this order:
//
//	from a server   tc: shaped through the rfi-up ifb (HTB, one class per interface)
//	                bridge prerouting, chain from/<server>/<nic>: own MAC, own IPv4, own ARP, nothing else
//	to a neighbour  bridge forward, chain to/<server>/<nic> of the neighbour
//	to the host     inet input: ICMP echo and answers, nothing else
//	elsewhere       inet forward: other networks no, VXLAN no, agents' ports no; connections bounded; masquerade
//	to a server     (published ports: inet prerouting and output, DNAT)
//	                bridge forward (from a port) or output (from the host), chain to/<server>/<nic>
//	                tc: shaped through the rfi-down ifb
//
// The filter of a NIC sits on its bridge port, the one place that traffic of neighbours, of
// other hosts and of the world all pass. It is stateful without connection tracking: what
// the server sends is noted in a set with timeouts (flows/…), and what answers it may come
// in. So it needs neither br_netfilter nor bridge connection tracking, which stock kernels
// have as optional modules, and it works the same where br_netfilter is on. The set is
// bounded, so that a server which fills it harms itself only.
//
// Published ports are those of the host's addresses, also for the host itself and for servers,
// but not of 127.0.0.1: to lead that elsewhere would open the host's loopback to its networks.
// Connections that began before a port was unpublished, or an Allow taken back, are not ended.
//
// Everything is found again after a restart: names are derived from ids, and links carry the
// ids in their alias, rules in the names of their chains.
package bridge
