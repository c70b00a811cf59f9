package provider

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// networkModel is a reflejo_network in HCL.
type networkModel struct {
	ID       types.String `tfsdk:"id"`
	Name     types.String `tfsdk:"name"`
	Hosts    types.Set    `tfsdk:"hosts"`
	CIDR     types.String `tfsdk:"cidr"`
	NAT      types.Bool   `tfsdk:"nat"`
	Gateways types.Map    `tfsdk:"gateways"`
	VNI      types.Int64  `tfsdk:"vni"`
	MTU      types.Int64  `tfsdk:"mtu"`
}

func (m networkModel) spec(members []*reflejov1.NetworkMember) *reflejov1.NetworkSpec {
	return &reflejov1.NetworkSpec{Id: m.ID.ValueString(), Name: m.Name.ValueString(), Cidr: m.CIDR.ValueString(), Nat: m.NAT.ValueBool(), Members: members}
}

// hostLimit is the number of hosts that a network of the range can span: the range is dealt
// out to its hosts in shares.
func hostLimit(cidr string) (int, bool) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil || !p.Addr().Is4() {
		return 0, false
	}
	return min(64, max(2, 1<<(32-p.Bits())/32)), true
}

// members gives each host its place. Hosts that have one keep it: it decides their gateway
// and the addresses that their servers have. New hosts get places after the last one while
// there are any, then the free ones in between. The error is fault.Exhausted.
func members(hosts []string, underlay map[string]string, known []*reflejov1.NetworkMember, limit int) ([]*reflejov1.NetworkMember, error) {
	place, taken, next := map[string]uint32{}, map[uint32]bool{}, uint32(0)
	for _, m := range known {
		if slices.Contains(hosts, m.GetHost()) {
			place[m.GetHost()], taken[m.GetSlot()] = m.GetSlot(), true
		}
		next = max(next, m.GetSlot()+1)
	}
	free := func() (uint32, bool) {
		if next < uint32(limit) {
			next++
			return next - 1, true
		}
		for slot := range uint32(limit) {
			if !taken[slot] {
				return slot, true
			}
		}
		return 0, false
	}
	for _, host := range slices.Sorted(slices.Values(hosts)) {
		if _, ok := place[host]; ok {
			continue
		}
		slot, ok := free()
		if !ok {
			return nil, &fault.Error{Kind: fault.Exhausted, Field: "hosts", Err: fmt.Errorf("%d hosts; a network of this range has room for %d: use a larger range", len(hosts), limit)}
		}
		place[host], taken[slot] = slot, true
	}
	list := make([]*reflejov1.NetworkMember, 0, len(place))
	for host, slot := range place {
		list = append(list, &reflejov1.NetworkMember{Host: host, Address: underlay[host], Slot: slot})
	}
	slices.SortFunc(list, func(a, b *reflejov1.NetworkMember) int { return int(a.GetSlot()) - int(b.GetSlot()) })
	return list, nil
}

// definitions are what several hosts say about one network.
type definitions struct {
	there  map[string]*reflejov1.Network // host → its definition
	absent []string                      // hosts that definitely do not have it
	silent map[string]error              // hosts that can't be asked
}

func definitionsOf(answers []answer[*reflejov1.Network]) definitions {
	d := definitions{there: map[string]*reflejov1.Network{}, silent: map[string]error{}}
	for _, a := range answers {
		switch {
		case a.err == nil:
			d.there[a.name] = a.value
		case fault.Is(a.err, fault.NotFound):
			d.absent = append(d.absent, a.name)
		default:
			d.silent[a.name] = a.err
		}
	}
	return d
}

// members are the places as the hosts know them.
func (d definitions) members() []*reflejov1.NetworkMember {
	place := map[string]*reflejov1.NetworkMember{}
	for _, host := range sortedKeys(d.there) {
		for _, m := range d.there[host].GetSpec().GetMembers() {
			if _, ok := place[m.GetHost()]; !ok || m.GetHost() == host { // a host knows its own place best
				place[m.GetHost()] = m
			}
		}
	}
	return slices.Collect(maps.Values(place))
}

// named are all hosts that any definition names.
func (d definitions) named() []string {
	names := map[string]bool{}
	for _, m := range d.members() {
		names[m.GetHost()] = true
	}
	return sortedKeys(names)
}

// refresh makes the model say what the hosts have. A host whose definition is not what the
// others have, or names other members than there are, counts as not having it, so that the
// next plan puts it right.
func (m *networkModel) refresh(d definitions) {
	have := sortedKeys(d.there)
	for _, host := range stringsOf(m.Hosts) { // silent: as last known
		if _, ok := d.silent[host]; ok {
			have = append(have, host)
		}
	}
	slices.Sort(have)
	reference := d.reference(*m)
	right := slices.DeleteFunc(slices.Clone(have), func(host string) bool {
		network, answered := d.there[host]
		return answered && !sameDefinition(network.GetSpec(), reference, have)
	})
	gateways := map[string]attr.Value{}
	for host, value := range m.Gateways.Elements() {
		if slices.Contains(have, host) {
			gateways[host] = value
		}
	}
	for host, network := range d.there {
		gateways[host] = types.StringValue(network.GetGateway())
		m.VNI, m.MTU = types.Int64Value(int64(network.GetVni())), types.Int64Value(int64(network.GetMtu()))
	}
	m.ID, m.Name = types.StringValue(reference.GetId()), types.StringValue(reference.GetName())
	m.CIDR, m.NAT = types.StringValue(reference.GetCidr()), types.BoolValue(reference.GetNat())
	m.Hosts, m.Gateways = stringSet(right), types.MapValueMust(types.StringType, gateways)
}

// reference is the definition to hold the others against: the first that differs from the
// model, so that drift on any host is seen, else the first.
func (d definitions) reference(m networkModel) *reflejov1.NetworkSpec {
	var reference *reflejov1.NetworkSpec
	for _, host := range sortedKeys(d.there) {
		spec := d.there[host].GetSpec()
		differs := spec.GetName() != m.Name.ValueString() || spec.GetCidr() != m.CIDR.ValueString() || spec.GetNat() != m.NAT.ValueBool()
		if differs {
			return spec
		}
		if reference == nil {
			reference = spec
		}
	}
	return reference
}

func sameDefinition(a, b *reflejov1.NetworkSpec, hosts []string) bool {
	names := make([]string, 0, len(a.GetMembers()))
	for _, m := range a.GetMembers() {
		names = append(names, m.GetHost())
	}
	slices.Sort(names)
	return a.GetName() == b.GetName() && a.GetCidr() == b.GetCidr() && a.GetNat() == b.GetNat() && slices.Equal(names, hosts)
}

// inUse is an error if servers use the network on one of the hosts, naming them.
func (d definitions) inUse(name string, hosts []string) error {
	var users []string
	for _, host := range hosts {
		if n := d.there[host].GetServers(); n > 0 {
			users = append(users, fmt.Sprintf("%d on %s", n, host))
		}
	}
	if len(users) == 0 {
		return nil
	}
	return &fault.Error{Kind: fault.Precondition, Field: "hosts", Err: fmt.Errorf(
		"servers use network %s (%s): destroy them or take them off it first; nothing was touched", name, strings.Join(users, ", "))}
}
