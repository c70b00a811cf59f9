package bridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// filter writes batches into the kernel.
type filter struct {
	ns netns.NsHandle

	mu         sync.Mutex
	kept       map[string]bool   // chains whose rules must stay, by name
	noted      map[string]bool   // ports that have a digest in the kernel, by link name
	digests    map[string]string // of the rules of ports, as of the generation
	generation uint32            // of the namespace's rules, of all programs
	// found are the elements of the tracked map as of the start, by the chain they lead to.
	// A link that is gone took its address with it: they alone still tell.
	found map[string][]element
}

func newFilter(ns netns.NsHandle) *filter {
	return &filter{ns: ns, kept: map[string]bool{}, noted: map[string]bool{}, digests: map[string]string{}}
}

func (f *filter) conn() (*nftables.Conn, error) {
	roomy := nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(batchBytes), c.SetReadBuffer(batchBytes))
	})
	c, err := nftables.New(nftables.WithNetNSFd(int(f.ns)), roomy)
	return c, wrapf(err, "open nf_tables")
}

// batchBytes is room for the largest batch, of a server with every interface full of
// openings, and for the answers to it.
const batchBytes = 64 << 20

func tableOf(f family) *nftables.Table {
	t := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	if f == bridge {
		t.Family = nftables.TableFamilyBridge
	}
	return t
}

// openTables makes the base rules so. Tables of another version of the program, which can't be
// changed into these, are replaced at once; servers' ports then carry nothing until Set.
func (f *filter) openTables(c Config) error {
	b := skeleton(c)
	err := f.apply(b)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		b.rebuild = true
		err = f.apply(b)
	}
	return err
}

// apply makes a batch so, at once or not at all.
func (f *filter) apply(b batch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.write(b)
}

// applyServer makes a server's rules so, unless they are, and makes the changes that come
// with them.
func (f *filter) applyServer(p serverPlan, changes batch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := f.readGeneration()
	if err != nil {
		return err
	}
	if now != f.generation {
		clear(f.digests) // another program changed rules, maybe ours
	}
	same := len(p.ports) > 0
	for _, q := range p.ports {
		same = same && f.digests[q.id.link()] == p.digest
	}
	if same {
		// Rules and their digest change at once: these came with the end of any memory that was
		// there before them. To take out what is not there would cost a grace period per server.
		changes.goneSets = nil
	}
	if same && changes.empty() {
		return nil
	}
	for _, e := range p.rules.elements {
		if e.set == mapFromPort && f.noted[e.label] {
			changes.goneElements = append(changes.goneElements, e) // its note changes
		}
	}
	changes.merge(p.rules)
	if err := f.write(changes); err != nil {
		return err
	}
	for _, q := range p.ports {
		f.digests[q.id.link()] = p.digest
	}
	return nil
}

// write makes a batch so. The caller holds mu.
func (f *filter) write(b batch) error {
	before, err := f.readGeneration()
	if err != nil {
		return err
	}
	b.goneElements = append(slices.Clip(b.goneElements), f.strays(b)...)
	if err := f.send(b); err != nil {
		return err
	}
	after, err := f.readGeneration()
	if err != nil {
		return err
	}
	if before != f.generation || after != before+1 {
		clear(f.digests)
	}
	f.generation = after
	for _, x := range b.chains {
		if x.keep {
			f.kept[x.name] = true
		}
	}
	for _, x := range b.goneChains {
		delete(f.kept, x.name)
		delete(f.found, x.name)
	}
	for _, e := range b.goneElements {
		if e.set == mapFromPort {
			delete(f.digests, e.label)
			delete(f.noted, e.label)
		}
	}
	for _, e := range b.elements {
		if e.set == mapFromPort {
			f.noted[e.label] = true
		}
	}
	return nil
}

// readGeneration asks for the number that every change of rules in the namespace raises.
func (f *filter) readGeneration() (uint32, error) {
	var out uint32
	err := in(f.ns, func() error {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
		req.AddRawData(make([]byte, 4)) // struct nfgenmsg
		msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			attrs, err := nl.ParseRouteAttr(m[4:])
			if err != nil {
				return err
			}
			for _, a := range attrs {
				if a.Attr.Type == unix.NFTA_GEN_ID && len(a.Value) == 4 {
					out = binary.BigEndian.Uint32(a.Value)
				}
			}
		}
		return nil
	})
	return out, wrapf(err, "read generation of rules")
}

// send gives a batch to the kernel.
func (f *filter) send(b batch) error {
	c, err := f.conn()
	if err != nil {
		return err
	}
	w := writer{conn: c}
	for _, fam := range []family{inet, bridge} {
		if b.rebuild {
			c.AddTable(tableOf(fam))
			c.DelTable(tableOf(fam))
		}
		c.AddTable(tableOf(fam))
	}
	for _, s := range append(b.sets, b.goneSets...) {
		w.addSet(s)
	}
	for _, x := range append(b.chains, b.goneChains...) {
		w.addChain(x, f.kept[x.name])
	}
	for _, x := range b.chains {
		w.addRules(x, f.kept[x.name])
	}
	for _, e := range b.goneElements {
		w.element(e, true)
		w.element(e, false)
	}
	for _, e := range b.elements {
		w.element(e, true)
	}
	for _, x := range b.goneChains {
		c.DelChain(&nftables.Chain{Name: x.name, Table: tableOf(x.family)})
	}
	for _, s := range b.goneSets {
		c.DelSet(nftSet(s))
	}
	if w.err != nil {
		return w.err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("change rules: %w", err)
	}
	return nil
}

// foundRules is what an earlier process left.
type foundRules struct {
	ports     []portID
	published map[publishKey]string // to whose server
}

// find tells whose ports have rules, and who publishes what, and learns their digests.
func (f *filter) find() (foundRules, error) {
	found := foundRules{published: map[publishKey]string{}}
	c, err := f.conn()
	if err != nil {
		return found, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.kept)
	clear(f.noted)
	clear(f.digests)
	if f.generation, err = f.readGeneration(); err != nil {
		return found, err
	}
	if f.found, err = findTracked(c); err != nil {
		return found, err
	}
	for fam, kind := range map[nftables.TableFamily]string{nftables.TableFamilyBridge: "from/", nftables.TableFamilyINet: "tracked/"} {
		chains, err := c.ListChainsOfTableFamily(fam)
		if err != nil {
			return found, fmt.Errorf("list chains: %w", err)
		}
		for _, x := range chains {
			rest, ok := strings.CutPrefix(x.Name, kind)
			server, nic, full := strings.Cut(rest, "/")
			switch {
			case x.Table.Name != tableName || !ok || !full:
			case fam == nftables.TableFamilyBridge:
				found.ports = append(found.ports, portID{server, nic})
			default:
				f.kept[x.Name] = true
			}
		}
	}
	published, err := c.GetSetElements(&nftables.Set{Table: tableOf(inet), Name: mapPublished})
	if err != nil {
		return found, fmt.Errorf("list published ports: %w", err)
	}
	for _, e := range published {
		if len(e.Key) >= 6 && e.Comment != "" {
			found.published[publishKey{e.Key[0], binary.BigEndian.Uint16(e.Key[4:])}] = e.Comment
		}
	}
	ports, err := c.GetSetElements(&nftables.Set{Table: tableOf(bridge), Name: mapFromPort})
	if err != nil {
		return found, fmt.Errorf("list ports with rules: %w", err)
	}
	for _, e := range ports {
		name := strings.TrimRight(string(e.Key), "\x00")
		f.noted[name], f.digests[name] = true, e.Comment
	}
	return found, nil
}

// findTracked lists the elements of the tracked map by the chain they lead to.
func findTracked(c *nftables.Conn) (map[string][]element, error) {
	elements, err := c.GetSetElements(&nftables.Set{Table: tableOf(inet), Name: mapTracked})
	if err != nil {
		return nil, fmt.Errorf("list bounds of connections: %w", err)
	}
	found := map[string][]element{}
	for _, e := range elements {
		if chain := e.Comment; chain != "" { // the library does not read verdicts back
			found[chain] = append(found[chain], element{family: inet, set: mapTracked, key: e.Key, jump: chain})
		}
	}
	return found, nil
}

// strays are the elements that lead to chains which a batch removes, and that it does not
// know of: a chain that something leads to can't be removed.
func (f *filter) strays(b batch) []element {
	var strays []element
	for _, x := range b.goneChains {
		for _, e := range f.found[x.name] {
			known := func(o element) bool { return o.set == e.set && bytes.Equal(o.key, e.key) }
			if x.family == inet && !slices.ContainsFunc(b.goneElements, known) {
				strays = append(strays, e)
			}
		}
	}
	return strays
}

// senders are the hosts that may send on a VXLAN segment.
func (f *filter) senders(vni uint32) ([]netip.Addr, error) {
	c, err := f.conn()
	if err != nil {
		return nil, err
	}
	elements, err := c.GetSetElements(&nftables.Set{Table: tableOf(inet), Name: setVTEPs})
	if err != nil {
		return nil, fmt.Errorf("list senders: %w", err)
	}
	var out []netip.Addr
	for _, e := range elements {
		if len(e.Key) == 8 && binary.BigEndian.Uint32(e.Key)>>8 == vni {
			out = append(out, netip.AddrFrom4([4]byte(e.Key[4:])))
		}
	}
	return out, nil
}

// writer collects a batch; its first error is kept.
type writer struct {
	conn *nftables.Conn
	sets uint32
	err  error
}

func nftSet(s set) *nftables.Set {
	n := &nftables.Set{Table: tableOf(s.family), Name: s.name, KeyType: keyType(s.keys), Size: s.size}
	if len(s.keys) == 1 && s.keys[0].size == 16 {
		n.KeyByteOrder = binaryutil.NativeEndian // for nft's listing: names are text
	}
	if s.verdict {
		n.IsMap, n.DataType = true, nftables.TypeVerdict
	}
	if s.dynamic {
		n.Dynamic, n.HasTimeout, n.Timeout = true, true, flowBrief
	}
	return n
}

func (w *writer) addSet(s set) {
	w.sets++
	n := nftSet(s)
	n.ID = w.sets // the library's own numbers are not safe for concurrent use
	w.keepErr(w.conn.AddSet(n, nil))
}

// hooks have the same numbers in both families.
var hooks = map[string]*nftables.ChainHook{
	"prerouting": nftables.ChainHookPrerouting, "input": nftables.ChainHookInput, "forward": nftables.ChainHookForward,
	"output": nftables.ChainHookOutput, "postrouting": nftables.ChainHookPostrouting,
}

// addChain makes a chain without rules. One that keeps its rules is only made sure of.
func (w *writer) addChain(x chain, kept bool) {
	n := &nftables.Chain{Name: x.name, Table: tableOf(x.family)}
	if x.hook != nil {
		n.Type, n.Hooknum = nftables.ChainType(x.hook.kind), hooks[x.hook.at]
		priority, policy := nftables.ChainPriority(x.hook.priority), nftables.ChainPolicyAccept
		n.Priority, n.Policy = &priority, &policy
	}
	w.conn.AddChain(n)
	if !x.keep || !kept {
		w.conn.FlushChain(&nftables.Chain{Name: x.name, Table: tableOf(x.family)})
	}
}

func (w *writer) addRules(x chain, kept bool) {
	if x.keep && kept {
		return
	}
	for _, r := range x.rules {
		e, err := compile(r)
		w.keepErr(err)
		w.conn.AddRule(&nftables.Rule{Table: tableOf(x.family), Chain: &nftables.Chain{Name: x.name, Table: tableOf(x.family)}, Exprs: e})
	}
}

func (w *writer) element(e element, add bool) {
	s := &nftables.Set{Table: tableOf(e.family), Name: e.set, IsMap: e.jump != ""}
	n := nftables.SetElement{Key: e.key}
	if !add {
		w.keepErr(w.conn.SetDeleteElements(s, []nftables.SetElement{n}))
		return
	}
	n.Comment = e.note
	if e.jump != "" {
		n.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: e.jump}
	}
	w.keepErr(w.conn.SetAddElements(s, []nftables.SetElement{n}))
}

func (w *writer) keepErr(err error) {
	if w.err == nil && err != nil {
		w.err = fmt.Errorf("write rules: %w", err)
	}
}
