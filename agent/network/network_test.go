package network

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

const testID = "11111111-2222-3333-4444-555555555555"

// However hosts join, and whatever each hands out by itself, no address is handed out twice,
// and none is a gateway's, the network's or the broadcast address.
func TestHostsNeverDealTheSameAddress(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), rapid.IntRange(22, maxBits).Draw(t, "bits"))
		d := Definition{ID: testID, Name: "n", CIDR: p}
		hosts := rapid.IntRange(1, min(5, Shares(p))).Draw(t, "hosts")
		for i := range hosts {
			d.Members = append(d.Members, Member{Host: string(rune('a' + i)), Address: netip.MustParseAddr("192.0.2.1"), Slot: i})
		}
		if err := d.Validate(); err != nil {
			t.Fatal(err)
		}
		owner := map[netip.Addr]int{}
		perHost := make([]map[netip.Addr]bool, hosts)
		for i := range perHost {
			perHost[i] = map[netip.Addr]bool{}
		}
		for range rapid.IntRange(1, 200).Draw(t, "servers") {
			h := rapid.IntRange(0, hosts-1).Draw(t, "host")
			free := Free(d, h, perHost[h])
			a, err := Allocate(d, h, netip.Addr{}, perHost[h])
			if err != nil {
				if !fault.Is(err, fault.Exhausted) || free != 0 {
					t.Fatalf("%v with %d free", err, free)
				}
				continue
			}
			if free == 0 {
				t.Fatalf("%s was dealt although none was free", a)
			}
			if other, ok := owner[a]; ok {
				t.Fatalf("%s dealt by %d and %d", a, other, h)
			}
			for s := range Shares(p) {
				if a == Gateway(p, s) {
					t.Fatalf("%s is the gateway of slot %d", a, s)
				}
			}
			if !Usable(p, a) || a == p.Addr() {
				t.Fatalf("%s is not usable", a)
			}
			owner[a], perHost[h][a] = h, true
		}
	})
}

// A network on one host only gives its servers the whole range.
func TestOneHostDealsWholeRange(t *testing.T) {
	p := netip.MustParsePrefix("10.0.0.0/24")
	d := Definition{ID: testID, Name: "n", CIDR: p, Members: []Member{{Host: "a"}}}
	used := map[netip.Addr]bool{}
	for {
		a, err := Allocate(d, 0, netip.Addr{}, used)
		if err != nil {
			break
		}
		used[a] = true
	}
	if want := 254 - Shares(p); len(used) != want {
		t.Errorf("dealt %d addresses, want %d", len(used), want)
	}
}

func TestAllocateNamedAddress(t *testing.T) {
	d := Definition{ID: testID, Name: "n", CIDR: netip.MustParsePrefix("10.0.0.0/24"), Members: []Member{{Host: "a"}}}
	used := map[netip.Addr]bool{netip.MustParseAddr("10.0.0.50"): true}
	for want, kind := range map[string]fault.Kind{"10.0.0.51": 255, "10.0.0.50": fault.Exists, "10.0.0.1": fault.Invalid, "10.0.0.255": fault.Invalid, "10.0.1.7": fault.Invalid} {
		a, err := Allocate(d, 0, netip.MustParseAddr(want), used)
		if kind == 255 {
			if err != nil || a.String() != want {
				t.Errorf("%s: %s, %v", want, a, err)
			}
		} else if !fault.Is(err, kind) {
			t.Errorf("%s: want %s, got %v", want, kind, err)
		}
	}
}

func TestValidateDefinition(t *testing.T) {
	good := func() Definition {
		return Definition{ID: testID, Name: "app", CIDR: netip.MustParsePrefix("10.77.0.0/24"), Members: []Member{
			{"alpha", netip.MustParseAddr("192.0.2.1"), 0}, {"beta", netip.MustParseAddr("192.0.2.2"), 1}}}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for field, set := range map[string]func(*Definition){
		"id":     func(d *Definition) { d.ID = "x" },
		"name":   func(d *Definition) { d.Name = "App" },
		"cidr":   func(d *Definition) { d.CIDR = netip.MustParsePrefix("10.77.0.1/24") },
		"cidr ":  func(d *Definition) { d.CIDR = netip.MustParsePrefix("10.0.0.0/29") },
		"cidr  ": func(d *Definition) { d.CIDR = netip.MustParsePrefix("127.0.0.0/8") },
		"cidr 6": func(d *Definition) { d.CIDR = netip.MustParsePrefix("fd00::/64") },
		"hosts":  func(d *Definition) { d.Members = nil },
		"hosts2": func(d *Definition) { d.Members[1].Slot = 0 },
		"hosts3": func(d *Definition) { d.Members[1].Host = "alpha" },
		"hosts4": func(d *Definition) { d.Members[1].Address = netip.Addr{} },
		"hosts5": func(d *Definition) { d.Members[1].Slot = 8 },
	} {
		d := good()
		set(&d)
		err := d.Validate()
		if !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != field[:len(fault.FieldOf(err))] || fault.FieldOf(err) == "" {
			t.Errorf("%s: blames %q: %v", field, fault.FieldOf(err), err)
		}
	}
}
