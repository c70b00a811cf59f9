package bridge

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// firstRegister is the first of the 4-byte registers: fields of a key lie one after another.
const firstRegister = unix.NFT_REG32_00

// compile makes kernel expressions of a rule.
func compile(r rule) ([]expr.Any, error) {
	var out []expr.Any
	for _, t := range r {
		e, err := compileTerm(t)
		if err != nil {
			return nil, fmt.Errorf("compile rule %q: %w", r, err)
		}
		out = append(out, e...)
	}
	return out, nil
}

func compileTerm(t term) ([]expr.Any, error) {
	switch t := t.(type) {
	case compare:
		op := expr.CmpOpEq
		if t.not {
			op = expr.CmpOpNeq
		}
		e := load(t.f, firstRegister)
		if t.mask != nil {
			e = append(e, &expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: uint32(len(t.mask)), Mask: t.mask, Xor: make([]byte, len(t.mask))})
		}
		return append(e, &expr.Cmp{Op: op, Register: firstRegister, Data: t.value}), nil
	case between:
		return append(load(t.f, firstRegister),
			&expr.Cmp{Op: expr.CmpOpGte, Register: firstRegister, Data: t.lo},
			&expr.Cmp{Op: expr.CmpOpLte, Register: firstRegister, Data: t.hi}), nil
	case member:
		return append(loadAll(t.fields), &expr.Lookup{SourceRegister: firstRegister, SetName: t.set, Invert: t.not}), nil
	case dispatch:
		return append(loadAll(t.fields), &expr.Lookup{SourceRegister: firstRegister, SetName: t.set, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true}), nil
	case remember:
		return append(loadAll(t.fields), &expr.Dynset{SrcRegKey: firstRegister, SetName: t.set, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: t.expire}), nil
	case ctState:
		return ctHas(expr.CtKeySTATE, t.bits), nil
	case ctStatus:
		return ctHas(expr.CtKeySTATUS, t.bits), nil
	case connections:
		return []expr.Any{&expr.Connlimit{Count: t.over, Flags: expr.NFT_CONNLIMIT_F_INV}}, nil
	case toHost:
		return []expr.Any{&expr.Fib{Register: firstRegister, ResultADDRTYPE: true, FlagDADDR: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)}}, nil
	case ipv4:
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: firstRegister},
			&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: []byte{unix.NFPROTO_IPV4}}}, nil
	case dnat:
		return []expr.Any{
			&expr.Immediate{Register: firstRegister, Data: ip4(t.addr)},
			&expr.Immediate{Register: firstRegister + 1, Data: u16(t.port)},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: firstRegister, RegProtoMin: firstRegister + 1},
		}, nil
	case masquerade:
		return []expr.Any{&expr.Masq{}}, nil
	case verdict:
		return compileVerdict(t)
	}
	return nil, fmt.Errorf("unknown term %T", t)
}

func compileVerdict(v verdict) ([]expr.Any, error) {
	switch v.kind {
	case "accept":
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}, nil
	case "drop":
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}, nil
	case "jump":
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: v.chain}}, nil
	}
	return nil, fmt.Errorf("unknown verdict %q", v.kind)
}

func ctHas(key expr.CtKey, bits ctBits) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: firstRegister},
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits.value), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: firstRegister, Data: make([]byte, 4)},
	}
}

// load puts a field into a register.
func load(f field, register uint32) []expr.Any {
	payload := func(b expr.PayloadBase) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: register, Base: b, Offset: f.offset, Len: f.size}}
	}
	switch f.base {
	case baseLink:
		return payload(expr.PayloadBaseLLHeader)
	case baseNetwork:
		return payload(expr.PayloadBaseNetworkHeader)
	case baseTransport:
		return payload(expr.PayloadBaseTransportHeader)
	}
	key := expr.MetaKeyL4PROTO
	switch f.offset {
	case metaIIFName:
		key = expr.MetaKeyIIFNAME
	case metaOIFName:
		key = expr.MetaKeyOIFNAME
	}
	return []expr.Any{&expr.Meta{Key: key, Register: register}}
}

// loadAll puts fields side by side into registers, as keys of sets have them.
func loadAll(fields []field) []expr.Any {
	var out []expr.Any
	register := uint32(firstRegister)
	for _, f := range fields {
		out = append(out, load(f, register)...)
		register += (f.size + 3) / 4
	}
	return out
}

// keyType is the type of a set's keys.
func keyType(fields []field) nftables.SetDatatype {
	types := make([]nftables.SetDatatype, len(fields))
	for i, f := range fields {
		switch f.name {
		case iifname.name, oifname.name:
			types[i] = nftables.TypeIFName
		case ipSrc.name, ipDst.name:
			types[i] = nftables.TypeIPAddr
		case ipProto.name, l4proto.name:
			types[i] = nftables.TypeInetProto
		case thSrc.name, thDst.name:
			types[i] = nftables.TypeInetService
		default:
			types[i] = nftables.TypeInteger
		}
	}
	if len(types) == 1 {
		return types[0]
	}
	return nftables.MustConcatSetType(types...)
}
