package bridge

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Shaping has one HTB per direction, on an ifb of ours, and one class per interface in it.
//
//	rfi-down, towards servers        rfi-up, from servers
//	1:1  HostIngress                 1:1  HostEgress
//	 ├ 1:10  eth0 of one server       ├ 1:10
//	 └ 1:20  eth0 of another          └ 1:20
//
// A class borrows all it sends from 1:1 up to its ceiling. So the sum never exceeds the host's
// bound, and when that is short each gets its share by quantum, which follows the ceiling.
const (
	// htbMajor is unlike what other programs use: a packet keeps its class as its priority,
	// and must mean nothing to a queue of the uplink.
	htbMajor = 0x7ef1
	htbRoot  = htbMajor<<16 | 1

	unlimited   = 1e12    // bits per second of 1:1 without a bound
	assured     = 8_000   // what a class has without borrowing, bits per second; HTB needs some
	minBurst    = 15_140  // bytes: ten frames
	minQueue    = 131_072 // bytes: two of the largest packets that a veth carries
	maxQueue    = 64 << 20
	minQuantum  = 1514
	maxQuantum  = 1 << 20
	burstMillis = 10
	queueMillis = 100
	shapedRing  = 1000 // packets that may wait for a class unknown
)

// classID is the HTB class of the n-th shaped interface. The low bits stay 0, which
// queues with bands take as ordinary traffic.
func classID(n uint16) uint32 { return htbMajor<<16 | uint32(n)<<4 }

// queueHandle is the handle of a class's queue.
func queueHandle(n uint16) uint32 { return (uint32(n) << 4) << 16 }

// rate is a class's parameters: bytes per second and bytes.
type rate struct {
	assured, ceil    uint64
	burst, ceilBurst uint64
	quantum          uint32
	queue            uint32 // 0: no queue of its own, it is no leaf
}

// hostRate is the root class of a direction.
func hostRate(bits int64) rate {
	if bits == 0 {
		bits = unlimited
	}
	r := uint64(bits) / 8
	return rate{assured: r, ceil: r, burst: burstOf(r), ceilBurst: burstOf(r), quantum: minQuantum}
}

// nicRate is the class of an interface; ok is false if nothing needs shaping.
func nicRate(bits, host int64) (r rate, ok bool) {
	if bits == 0 {
		bits = host
	}
	if host > 0 && bits > host {
		bits = host
	}
	if bits == 0 {
		return rate{}, false
	}
	ceil := max(uint64(bits)/8, 1)
	return rate{
		assured: min(assured/8, ceil), ceil: ceil, burst: minBurst, ceilBurst: burstOf(ceil),
		quantum: uint32(min(max(ceil/1000, minQuantum), maxQuantum)),
		queue:   uint32(min(max(ceil*queueMillis/1000, minQueue), maxQueue)),
	}, true
}

func burstOf(bytesPerSecond uint64) uint64 {
	return max(bytesPerSecond*burstMillis/1000, minBurst)
}

// String is the class in the words of tc.
func (r rate) String() string {
	s := fmt.Sprintf("htb rate %dbit ceil %dbit burst %d cburst %d quantum %d", r.assured*8, r.ceil*8, r.burst, r.ceilBurst, r.quantum)
	if r.queue > 0 {
		s += fmt.Sprintf(" bfifo limit %d", r.queue)
	}
	return s
}

// Attributes of an HTB class (linux/pkt_sched.h).
const (
	attrHTBParms  = 1
	attrHTBRate64 = 6
	attrHTBCeil64 = 7
)

// parms is struct tc_htb_opt. Rates beyond 32 bits of bytes per second (34 Gbit/s) go in
// attributes of their own; the 32 bits are then at their largest, not cut off.
func (r rate) parms() []byte {
	var b []byte
	spec := func(bytesPerSecond uint64) {
		b = append(b, 0, 1, 0, 0, 0, 0, 0, 0) // link layer Ethernet: no rate table is needed
		b = binary.NativeEndian.AppendUint32(b, uint32(min(bytesPerSecond, math.MaxUint32)))
	}
	spec(r.assured)
	spec(r.ceil)
	b = binary.NativeEndian.AppendUint32(b, ticks(r.burst, r.assured))
	b = binary.NativeEndian.AppendUint32(b, ticks(r.ceilBurst, r.ceil))
	b = binary.NativeEndian.AppendUint32(b, r.quantum)
	return append(b, make([]byte, 8)...) // level and priority
}

// ticks is how long bytes take, in the kernel's unit of 64 ns.
func ticks(bytes, bytesPerSecond uint64) uint32 {
	t := float64(bytes) / float64(bytesPerSecond) * 1e9 / 64
	return uint32(min(max(t, 1), math.MaxUint32))
}

// priorityProgram is the eBPF program that puts packets into a class: it writes the class into
// the packet's priority, which HTB looks at first, and lets the next filter go on.
func priorityProgram(class uint32) []byte {
	var b []byte
	insn := func(op byte, regs byte, off int16, imm int32) {
		b = append(b, op, regs)
		b = binary.NativeEndian.AppendUint16(b, uint16(off))
		b = binary.NativeEndian.AppendUint32(b, uint32(imm))
	}
	insn(0xb7, 0x02, 0, int32(class)) // r2 = class
	insn(0x63, 0x21, 32, 0)           // ((struct __sk_buff *)r1)->priority = r2
	insn(0xb7, 0x00, 0, -1)           // r0 = TC_ACT_UNSPEC
	insn(0x95, 0x00, 0, 0)            // return r0
	return b
}
