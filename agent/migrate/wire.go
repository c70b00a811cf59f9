package migrate

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/klauspost/compress/zstd"

	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Purpose is what the endpoint knows this package by.
const Purpose = "migrate/1"

// The frames' types.
const (
	frameOpen  = 16
	frameRound = 17
	frameData  = 18
	frameZero  = 19
	frameMark  = 20
	frameEnd   = 21
	frameKeep  = 22
	frameAsk   = 23
	frameState = 32
)

const (
	dataHeader = 17
	zeroFrame  = 16
	pieceSize  = 512 << 10 // of the disk in one data frame, at most
	maxJSON    = 1 << 20
	maxDisk    = 64 << 40
)

// opening is the payload of open.
type opening struct {
	Move         string
	Architecture string
	Server       vserver.Incoming
}

// roundBegin is the payload of round.
type roundBegin struct {
	Round string
	Since string // the round it builds on; "" begins with zeros
	Size  int64  // of the disk, bytes
}

// roundMark is the payload of mark.
type roundMark struct{ Offset int64 }

// roundEnd is the payload of end.
type roundEnd struct {
	Round  string
	Frames int64  // data and zero frames since the round began on this link
	Sum    uint32 // see summed
}

// keeping is the payload of keep.
type keeping struct {
	ID     string
	Record snapshot.Record
}

// asking is the payload of ask.
type asking struct {
	Move  string
	Ask   Ask
	Round string // with commit: the round that makes the copy complete
}

// state is what the target answers.
type state struct {
	Phase   TargetPhase
	Base    string
	Round   string
	Through int64
	Kept    []string
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// summed adds a data or zero frame to the sum of a round: its place, and what was sent.
func summed(sum uint32, r snapshot.Range, content uint32) uint32 {
	var b [20]byte
	binary.BigEndian.PutUint64(b[:], uint64(r.Offset))
	binary.BigEndian.PutUint64(b[8:], uint64(r.Length))
	binary.BigEndian.PutUint32(b[16:], content)
	return crc32.Update(sum, castagnoli, b[:])
}

// piece is one data frame.
type piece struct {
	Range  snapshot.Range
	Sum    uint32
	Packed bool
	Bytes  []byte
}

// packer makes data frames; it tries to compress only where that helped lately.
type packer struct {
	zstd *zstd.Encoder
	out  []byte
	skip int // pieces that are not tried
}

func newPacker() (*packer, error) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	return &packer{zstd: e}, err
}

// pack is the header and the bytes of a data frame. They are valid until the next call.
func (p *packer) pack(offset int64, content []byte) (header, bytes []byte, sum uint32) {
	sum = crc32.Checksum(content, castagnoli)
	bytes, packed := content, byte(0)
	if p.skip > 0 {
		p.skip--
	} else {
		p.out = p.zstd.EncodeAll(content, p.out[:0])
		if len(p.out) < len(content)*7/8 {
			bytes, packed = p.out, 1
		} else {
			p.skip = 16
		}
	}
	header = binary.BigEndian.AppendUint64(make([]byte, 0, dataHeader), uint64(offset))
	header = binary.BigEndian.AppendUint32(header, uint32(len(content)))
	header = binary.BigEndian.AppendUint32(header, sum)
	return append(header, packed), bytes, sum
}

// decodePiece reads a data frame without unpacking it.
func decodePiece(b []byte) (piece, error) {
	if len(b) < dataHeader {
		return piece{}, errors.New("a data frame that is cut off")
	}
	p := piece{Range: snapshot.Range{Offset: int64(binary.BigEndian.Uint64(b)), Length: int64(binary.BigEndian.Uint32(b[8:]))},
		Sum: binary.BigEndian.Uint32(b[12:]), Packed: b[16] == 1, Bytes: b[dataHeader:]}
	switch {
	case b[16] > 1:
		return p, fmt.Errorf("a data frame of kind %d", b[16])
	case p.Range.Length == 0 || p.Range.Length > pieceSize:
		return p, fmt.Errorf("a data frame for %d bytes, want 1 … %d", p.Range.Length, pieceSize)
	case !p.Packed && int64(len(p.Bytes)) != p.Range.Length:
		return p, fmt.Errorf("a data frame with %d bytes for %d", len(p.Bytes), p.Range.Length)
	}
	return p, within(p.Range)
}

func within(r snapshot.Range) error {
	if r.Offset < 0 || r.Offset > maxDisk || r.Length < 0 || r.Length > maxDisk {
		return fmt.Errorf("a range of %d bytes at %d", r.Length, r.Offset)
	}
	return nil
}

// unpacker reads data frames.
type unpacker struct {
	zstd *zstd.Decoder
	out  []byte
}

func newUnpacker() (*unpacker, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*pieceSize))
	return &unpacker{zstd: d}, err
}

// content is what a piece says the disk holds, checked against its sum.
func (u *unpacker) content(p piece) ([]byte, error) {
	content := p.Bytes
	if p.Packed {
		var err error
		if u.out, err = u.zstd.DecodeAll(p.Bytes, u.out[:0]); err != nil {
			return nil, fmt.Errorf("unpack %d bytes at %d: %w", p.Range.Length, p.Range.Offset, err)
		}
		content = u.out
	}
	if int64(len(content)) != p.Range.Length || crc32.Checksum(content, castagnoli) != p.Sum {
		return nil, fmt.Errorf("%d bytes at %d are not what was sent", p.Range.Length, p.Range.Offset)
	}
	return content, nil
}

func encodeZero(r snapshot.Range) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(r.Offset)), uint64(r.Length))
}

func decodeZero(b []byte) (snapshot.Range, error) {
	if len(b) != zeroFrame {
		return snapshot.Range{}, fmt.Errorf("a zero frame of %d bytes", len(b))
	}
	r := snapshot.Range{Offset: int64(binary.BigEndian.Uint64(b)), Length: int64(binary.BigEndian.Uint64(b[8:]))}
	if r.Length == 0 {
		return r, errors.New("a zero frame for nothing")
	}
	return r, within(r)
}

// sendJSON sends a frame whose payload is v.
func sendJSON(l Link, kind byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame of type %d: %w", kind, err)
	}
	return l.Send(kind, b)
}

// decodeJSON reads what another agent sent.
func decodeJSON(f endpoint.Frame, v any) error {
	if len(f.Payload) > maxJSON {
		return fault.New(fault.Invalid, "a frame of type %d has %d bytes", f.Type, len(f.Payload))
	}
	if err := json.Unmarshal(f.Payload, v); err != nil {
		return fault.New(fault.Invalid, "a frame of type %d: %w", f.Type, err)
	}
	return nil
}

// request sends a frame and waits for the target's state.
func request(l Link, kind byte, v any) (state, error) {
	if err := sendJSON(l, kind, v); err != nil {
		return state{}, err
	}
	f, err := l.Receive()
	if err != nil {
		return state{}, err
	}
	var s state
	if f.Type != frameState {
		return s, fault.New(fault.Invalid, "host %s answers with a frame of type %d", l.Peer(), f.Type)
	}
	return s, decodeJSON(f, &s)
}
