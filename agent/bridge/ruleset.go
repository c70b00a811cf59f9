package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// family is which of our two tables something is in.
type family string

const (
	inet   family = "inet"
	bridge family = "bridge"

	tableName = "reflejo"
)

// rule is a line of a chain.
type rule []term

func (r rule) String() string {
	parts := make([]string, len(r))
	for i, t := range r {
		parts[i] = t.text()
	}
	return strings.Join(parts, " ")
}

// line makes a rule of terms and lists of terms.
func line(parts ...any) rule {
	var r rule
	for _, p := range parts {
		switch p := p.(type) {
		case term:
			r = append(r, p)
		case []term:
			r = append(r, p...)
		default:
			panic(fmt.Sprintf("no term: %T", p))
		}
	}
	return r
}

// hook is where a base chain starts.
type hook struct {
	kind     string // filter | nat
	at       string // prerouting, input, forward, output, postrouting
	priority int32
}

// chain is a chain with all its rules.
type chain struct {
	family family
	name   string
	hook   *hook
	keep   bool // if it exists it stays as it is: its rules have counts
	rules  []rule
}

// set is a named set or verdict map. keys name the types of its parts.
type set struct {
	family  family
	name    string
	keys    []field
	verdict bool
	dynamic bool // filled by rules, entries expire
	size    uint32
}

// element is a member of a set.
type element struct {
	family family
	set    string
	key    []byte
	label  string // the key for people
	jump   string // of a verdict map
	note   string // kept by the kernel with the element, as its comment
}

// batch is a change of the ruleset that happens at once or not at all: what it has is made
// so, whatever was there; what goneX lists is removed, also if it is not there.
type batch struct {
	rebuild      bool // remove both tables first
	sets         []set
	chains       []chain
	elements     []element
	goneElements []element
	goneChains   []chain
	goneSets     []set
}

// digest names what the batch makes.
func (b batch) digest() string {
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:8])
}

// empty tells that the batch does nothing.
func (b batch) empty() bool {
	return len(b.sets)+len(b.chains)+len(b.elements)+len(b.goneElements)+len(b.goneChains)+len(b.goneSets) == 0
}

// merge adds another batch's content.
func (b *batch) merge(o batch) {
	b.sets = append(b.sets, o.sets...)
	b.chains = append(b.chains, o.chains...)
	b.elements = append(b.elements, o.elements...)
	b.goneElements = append(b.goneElements, o.goneElements...)
	b.goneChains = append(b.goneChains, o.goneChains...)
	b.goneSets = append(b.goneSets, o.goneSets...)
}

// String is the batch in the words of nft.
func (b batch) String() string {
	var s strings.Builder
	for _, c := range b.chains {
		fmt.Fprintf(&s, "%s chain %s\n", c.family, c.name)
		if c.hook != nil {
			fmt.Fprintf(&s, "    type %s hook %s priority %d\n", c.hook.kind, c.hook.at, c.hook.priority)
		}
		for _, r := range c.rules {
			fmt.Fprintf(&s, "    %s\n", r)
		}
	}
	for _, e := range b.elements {
		fmt.Fprintf(&s, "%s %s { %s", e.family, e.set, e.label)
		if e.jump != "" {
			fmt.Fprintf(&s, " : jump %s", e.jump)
		}
		s.WriteString(" }\n")
	}
	for _, e := range b.goneElements {
		fmt.Fprintf(&s, "delete %s %s { %s }\n", e.family, e.set, e.label)
	}
	for _, c := range b.goneChains {
		fmt.Fprintf(&s, "delete %s chain %s\n", c.family, c.name)
	}
	for _, x := range b.goneSets {
		fmt.Fprintf(&s, "delete %s set %s\n", x.family, x.name)
	}
	return s.String()
}
