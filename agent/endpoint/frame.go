package endpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

const headerSize = 5

// appendHeader adds the header of a frame with an n-byte payload.
func appendHeader(b []byte, kind byte, n int) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(n)), kind)
}

// readFrame reads one frame into buf, which it grows to at most limit bytes; payload is
// part of it. A frame longer than limit is an error before memory is taken.
func readFrame(r io.Reader, buf []byte, limit int) (kind byte, payload []byte, err error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, buf, err
	}
	n := binary.BigEndian.Uint32(head[:4])
	if n > uint32(limit) {
		return 0, buf, fmt.Errorf("a frame of type %d has %d bytes, at most %d are allowed", head[4], n, limit)
	}
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	payload = buf[:n]
	if _, err := io.ReadFull(r, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, payload, err
	}
	return head[4], payload, nil
}

const magic = "reflejo\n"

// hello is the first frame of the side that calls.
type hello struct {
	Lowest, Highest uint16
	Purpose         string
	Right           []byte
}

func (h hello) encode() ([]byte, error) {
	if h.Purpose == "" || len(h.Purpose) > maxPurpose || len(h.Right) > maxRight {
		return nil, fmt.Errorf("purpose %q with a right of %d bytes: want 1 … %d and at most %d bytes", h.Purpose, len(h.Right), maxPurpose, maxRight)
	}
	b := binary.BigEndian.AppendUint16([]byte(magic), h.Lowest)
	b = binary.BigEndian.AppendUint16(b, h.Highest)
	b = append(append(b, byte(len(h.Purpose))), h.Purpose...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.Right)))
	return append(b, h.Right...), nil
}

func decodeHello(b []byte) (hello, error) {
	var h hello
	d := decoder{b: b}
	if string(d.take(len(magic))) != magic {
		return h, errors.New("it does not begin as a hello does")
	}
	h.Lowest, h.Highest = d.uint16(), d.uint16()
	h.Purpose = string(d.take(int(d.uint8())))
	h.Right = append([]byte(nil), d.take(int(d.uint16()))...)
	switch {
	case d.short:
		return h, errors.New("the hello is cut off")
	case h.Purpose == "" || len(h.Purpose) > maxPurpose || len(h.Right) > maxRight:
		return h, fmt.Errorf("a purpose of %d bytes with a right of %d", len(h.Purpose), len(h.Right))
	case h.Lowest > h.Highest:
		return h, fmt.Errorf("versions %d … %d", h.Lowest, h.Highest)
	}
	return h, nil
}

// negotiate is the highest version that both sides speak.
func negotiate(lowest, highest uint16) (uint16, error) {
	v := min(highest, highestVersion)
	if v < max(lowest, lowestVersion) {
		return 0, fault.New(fault.Precondition, "speak with an agent of versions %d … %d: this agent speaks %d … %d; bring the older one up to date", lowest, highest, lowestVersion, highestVersion)
	}
	return v, nil
}

func encodeWelcome(version uint16) []byte { return binary.BigEndian.AppendUint16(nil, version) }

func decodeWelcome(b []byte) (uint16, error) {
	d := decoder{b: b}
	v := d.uint16()
	if d.short || v < lowestVersion || v > highestVersion {
		return 0, fmt.Errorf("a welcome to version %d", v)
	}
	return v, nil
}

// RemoteError is what the other side said before it gave up. It comes inside a fault.Error
// of the kind that it had there.
type RemoteError struct {
	Host string // whose agent
	Text string
}

func (e *RemoteError) Error() string { return "host " + e.Host + ": " + e.Text }

func encodeError(err error) []byte {
	field, text := fault.FieldOf(err), strings.ToValidUTF8(err.Error(), "?")
	if len(field) > maxText {
		field = ""
	}
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "")
	}
	b := append([]byte{byte(fault.KindOf(err))}, 0, 0)
	binary.BigEndian.PutUint16(b[1:], uint16(len(field)))
	return append(append(b, field...), text...)
}

// decodeError makes the error again that the other side had.
func decodeError(host string, b []byte) error {
	d := decoder{b: b}
	kind := fault.Kind(d.uint8())
	field := d.take(int(d.uint16()))
	if d.short || len(d.b) > maxText || !utf8.Valid(d.b) || !utf8.Valid(field) {
		return fault.New(fault.Unavailable, "read from host %s: an error that can't be read", host)
	}
	if kind > fault.Aborted {
		kind = fault.Internal
	}
	return &fault.Error{Kind: kind, Field: string(field), Err: &RemoteError{Host: host, Text: string(d.b)}}
}

// decoder reads fields off the front of b; short is set once there were too few bytes.
type decoder struct {
	b     []byte
	short bool
}

func (d *decoder) take(n int) []byte {
	if len(d.b) < n {
		d.b, d.short = nil, true
		return nil
	}
	part := d.b[:n]
	d.b = d.b[n:]
	return part
}

func (d *decoder) uint8() uint8 {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) uint16() uint16 {
	if p := d.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}
