package testbed

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
)

// cutTable is the nftables table in the switch that drops what is cut.
const cutTable = "cuts"

// cut is a pair of places that can't reach each other, in order.
type cut [2]string

func newCut(a, b string) cut {
	if a > b {
		a, b = b, a
	}
	return cut{a, b}
}

// Cut drops everything between two places, both ways and without a word to either.
func (b *Bed) Cut(one, other string) error { return b.changeCuts(one, other, true) }

// Heal ends what Cut began.
func (b *Bed) Heal(one, other string) error { return b.changeCuts(one, other, false) }

func (b *Bed) changeCuts(one, other string, apart bool) error {
	for _, place := range []string{one, other} {
		if !slices.Contains(b.n.places(), place) {
			return fmt.Errorf("host %q is unknown: use one of %v", place, b.n.places())
		}
	}
	if one == other {
		return fmt.Errorf("cut %s from itself: name two hosts", one)
	}
	unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	cuts, err := b.loadCuts()
	if err != nil {
		return err
	}
	this := newCut(one, other)
	cuts = slices.DeleteFunc(cuts, func(c cut) bool { return c == this })
	if apart {
		cuts = append(cuts, this)
	}
	if err := b.setCuts(cuts); err != nil {
		return err
	}
	text, err := json.Marshal(cuts)
	if err != nil {
		return err
	}
	return os.WriteFile(b.cutsFile(), text, 0o644)
}

func (b *Bed) cutsFile() string { return b.n.path("cuts.json") }

func (b *Bed) loadCuts() (cuts []cut, err error) {
	text, err := os.ReadFile(b.cutsFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return cuts, json.Unmarshal(text, &cuts)
}

// setCuts replaces the switch's table by one that drops exactly these: a chain per port
// with a rule per neighbour that its frames may not go to. It matches hardware addresses,
// so that nothing (tunnels, published ports) finds a way around.
func (b *Bed) setCuts(cuts []cut) error {
	ns, err := netns.GetFromPath(b.n.netns(switchPlace))
	if err != nil {
		return fmt.Errorf("open namespace of the switch: %w", err)
	}
	defer ns.Close()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return fmt.Errorf("open nftables of the switch: %w", err)
	}
	table := &nftables.Table{Name: cutTable, Family: nftables.TableFamilyNetdev}
	c.AddTable(table) // so that there is one to delete
	c.DelTable(table)
	c.AddTable(table)
	for _, place := range b.n.places() {
		var blocked []string
		for _, cut := range cuts {
			if i := slices.Index(cut[:], place); i >= 0 {
				blocked = append(blocked, cut[1-i])
			}
		}
		if len(blocked) == 0 {
			continue
		}
		chain := c.AddChain(&nftables.Chain{
			Name: place, Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter, Device: place,
		})
		for _, other := range blocked {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6}, // ether daddr
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: hardwareAddr(other)},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("set cuts %v: %w", cuts, err)
	}
	return nil
}
