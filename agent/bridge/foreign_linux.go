package bridge

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
)

// ForeignDrops names the base chains of other programs that drop forwarded packets unless
// one of their rules accepts them ("ip filter FORWARD"), as Docker's and most host firewalls'
// do. A packet must pass every table, so no rule of ours can let servers' traffic through them.
func (m *Manager) ForeignDrops() ([]string, error) {
	c, err := m.nft.conn()
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	return foreignDrops(chains), nil
}

func foreignDrops(chains []*nftables.Chain) []string {
	families := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip"}
	var drops []string
	for _, x := range chains {
		family, ours := families[x.Table.Family], x.Table.Name == tableName
		forwards := x.Hooknum != nil && *x.Hooknum == *nftables.ChainHookForward && x.Type == nftables.ChainTypeFilter
		if family != "" && !ours && forwards && x.Policy != nil && *x.Policy == nftables.ChainPolicyDrop {
			drops = append(drops, family+" "+x.Table.Name+" "+x.Name)
		}
	}
	slices.Sort(drops)
	return drops
}
