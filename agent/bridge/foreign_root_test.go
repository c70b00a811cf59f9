//go:build linux && root

package bridge

import (
	"slices"
	"testing"

	"github.com/google/nftables"
)

// A firewall beside ours that drops what it does not know is found, our own is not.
func TestForeignDrops(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	must(t, h.SetNetwork(t.Context(), network(netA, "10.77.0.0/24", "10.77.0.1")))
	if got, err := h.ForeignDrops(); err != nil || len(got) != 0 {
		t.Fatalf("without another firewall: %v, %v", got, err)
	}
	c, err := h.nft.conn()
	must(t, err)
	drop, accept := nftables.ChainPolicyDrop, nftables.ChainPolicyAccept
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	for name, policy := range map[string]*nftables.ChainPolicy{"FORWARD": &drop, "LATER": &accept} {
		c.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
			Priority: nftables.ChainPriorityFilter, Policy: policy})
	}
	c.AddChain(&nftables.Chain{Name: "INPUT", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
		Priority: nftables.ChainPriorityFilter, Policy: &drop})
	must(t, c.Flush())
	if got, err := h.ForeignDrops(); err != nil || !slices.Equal(got, []string{"ip filter FORWARD"}) {
		t.Errorf("beside another firewall: %v, %v", got, err)
	}
}
