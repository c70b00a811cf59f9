package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

func (a *app) networkCommand() *cobra.Command {
	return group("network", "Keep the networks that servers are on",
		&cobra.Command{
			Use:     "list",
			Aliases: []string{"ls"},
			Short:   "List the networks of all hosts",
			Args:    exactly(0, "no arguments"),
			RunE:    func(c *cobra.Command, _ []string) error { return a.networkList(c.Context(), "") },
		},
		&cobra.Command{
			Use:   "show NETWORK",
			Short: "Show a network on each of its hosts",
			Args:  exactly(1, "a network's name or id"),
			RunE:  func(c *cobra.Command, args []string) error { return a.networkList(c.Context(), args[0]) },
		},
		a.createNetworkCommand(),
		&cobra.Command{
			Use:   "delete NETWORK",
			Short: "Delete a network from all its hosts",
			Args:  exactly(1, "a network's name or id"),
			RunE: func(c *cobra.Command, args []string) error {
				return onEach(c.Context(), a, "network", args[0], func(ctx context.Context, c *api.Client) error {
					_, err := c.Networks.DeleteNetwork(ctx, connect.NewRequest(&reflejov1.DeleteNetworkRequest{Id: args[0]}))
					return err
				})
			},
		},
	)
}

// networkList lists all networks, or one by id or name.
func (a *app) networkList(ctx context.Context, only string) error {
	clients, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	answers := ask(ctx, clients, func(ctx context.Context, c *api.Client) ([]*reflejov1.Network, error) {
		res, err := c.Networks.ListNetworks(ctx, connect.NewRequest(&reflejov1.ListNetworksRequest{}))
		if err != nil {
			return nil, err
		}
		return slices.DeleteFunc(res.Msg.GetNetworks(), func(n *reflejov1.Network) bool {
			return only != "" && n.GetSpec().GetId() != only && n.GetSpec().GetName() != only
		}), nil
	})
	found := 0
	byHost := map[string]any{}
	var rows [][]string
	for _, r := range answers {
		list := []any{}
		for _, n := range r.value {
			found++
			text, err := messageJSON(n)
			if err != nil {
				return err
			}
			list = append(list, text)
			rows = append(rows, networkRow(r.client.Name(), n))
		}
		if r.err == nil {
			byHost[r.client.Name()] = list
		}
	}
	if only != "" && found == 0 {
		return errors.Join(fault.New(fault.NotFound, "no network %q on the hosts that answered", only), failures(answers))
	}
	if a.flags.output == "json" {
		err = a.printJSON(byHost)
	} else {
		slices.SortStableFunc(rows, func(x, y []string) int { return strings.Compare(x[0], y[0]) })
		err = a.table([]string{"NAME", "HOST", "RANGE", "GATEWAY", "NAT", "SPANS", "VNI", "MTU", "SERVERS", "FREE", "ID"}, rows)
	}
	return errors.Join(err, failures(answers))
}

func networkRow(host string, n *reflejov1.Network) []string {
	nat := "no"
	if n.GetSpec().GetNat() {
		nat = "yes"
	}
	var spans []string
	for _, m := range n.GetSpec().GetMembers() {
		spans = append(spans, m.GetHost())
	}
	return []string{
		n.GetSpec().GetName(), host, n.GetSpec().GetCidr(), n.GetGateway(), nat, dash(strings.Join(spans, ",")),
		fmt.Sprint(n.GetVni()), fmt.Sprint(n.GetMtu()), fmt.Sprint(n.GetServers()), fmt.Sprint(n.GetFreeAddresses()), n.GetSpec().GetId(),
	}
}

func (a *app) createNetworkCommand() *cobra.Command {
	spec := &reflejov1.NetworkSpec{}
	c := &cobra.Command{
		Use:   "create NAME --cidr RANGE",
		Short: "Create a network that spans all hosts, or is on the one of --host",
		Long: `Create a network that spans all hosts, or is on the one of --host.
Repeated after a failure it finishes what was begun.`,
		Args: exactly(1, "a name"),
		RunE: func(c *cobra.Command, args []string) error {
			spec.Name = args[0]
			return a.createNetwork(c.Context(), spec)
		},
	}
	c.Flags().StringVar(&spec.Cidr, "cidr", "", "its IPv4 range, such as 10.77.0.0/16")
	c.Flags().BoolVar(&spec.Nat, "nat", false, "let its servers out to elsewhere through their host")
	c.MarkFlagRequired("cidr")
	return c
}

func (a *app) createNetwork(ctx context.Context, spec *reflejov1.NetworkSpec) error {
	clients, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 4*askLimit)
	defer cancel()
	if err := describeMembers(ctx, clients, spec); err != nil {
		return err
	}
	answers := ask(ctx, clients, func(ctx context.Context, c *api.Client) (*reflejov1.Network, error) {
		res, err := c.Networks.PutNetwork(ctx, connect.NewRequest(&reflejov1.PutNetworkRequest{Spec: spec}))
		if err != nil {
			return nil, err
		}
		return res.Msg.GetNetwork(), nil
	})
	if err := failures(answers); err != nil {
		return fmt.Errorf("create network %s (repeat the command to finish it, or delete the network):\n%w", spec.GetName(), err)
	}
	if a.flags.output == "json" {
		return a.printMessage(answers[0].value)
	}
	_, err = fmt.Fprintf(a.out, "network %s is %s\n", printable(spec.GetName()), spec.GetId())
	return err
}

// describeMembers fills in the id and the members. A network of this name that is on one of
// the hosts gives its id and its members' places, which never change.
func describeMembers(ctx context.Context, clients []*api.Client, spec *reflejov1.NetworkSpec) error {
	hosts := ask(ctx, clients, func(ctx context.Context, c *api.Client) (*reflejov1.Host, error) {
		res, err := c.Hosts.GetHost(ctx, connect.NewRequest(&reflejov1.GetHostRequest{}))
		if err != nil {
			return nil, err
		}
		return res.Msg.GetHost(), nil
	})
	if err := failures(hosts); err != nil {
		return err
	}
	existing := ask(ctx, clients, func(ctx context.Context, c *api.Client) (*reflejov1.Network, error) {
		res, err := c.Networks.GetNetwork(ctx, connect.NewRequest(&reflejov1.GetNetworkRequest{Id: spec.GetName()}))
		if fault.Is(api.ErrorOf(err), fault.NotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return res.Msg.GetNetwork(), nil
	})
	if err := failures(existing); err != nil {
		return err
	}
	spec.Id = uuid.NewString()
	slots := map[string]uint32{}
	for _, r := range existing {
		if r.value == nil {
			continue
		}
		spec.Id = r.value.GetSpec().GetId()
		for _, m := range r.value.GetSpec().GetMembers() {
			slots[m.GetHost()] = m.GetSlot()
		}
	}
	for _, r := range hosts {
		slot, ok := slots[r.client.Name()]
		if !ok {
			slot = freeSlot(slots)
			slots[r.client.Name()] = slot
		}
		member := &reflejov1.NetworkMember{Host: r.client.Name(), Address: r.value.GetUnderlayAddress(), Slot: slot}
		if member.GetAddress() == "" && len(hosts) > 1 {
			return fault.New(fault.Precondition, "host %s can't be in a network with others: set underlay_address in its configuration", r.client.Name())
		}
		spec.Members = append(spec.Members, member)
	}
	return nil
}

func freeSlot(taken map[string]uint32) uint32 {
	used := map[uint32]bool{}
	for _, s := range taken {
		used[s] = true
	}
	for s := uint32(0); ; s++ {
		if !used[s] {
			return s
		}
	}
}
