package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// errLost is the error of a watch that has missed something.
var errLost = errors.New("not every write is known")

const sectorSize = 512 // of the block layer, whatever the device's is

// eventFormat says where the fields of block:block_rq_complete are in an event, which
// differs between kernels.
type eventFormat struct {
	sector, count, op field
}

type field struct{ offset, size int }

// parseFormat reads an event's format file, of which these lines matter:
//
//	field:sector_t sector;	offset:16;	size:8;	signed:0;
func parseFormat(text string) (eventFormat, error) {
	fields := map[string]field{}
	for line := range strings.Lines(text) {
		parts := strings.Split(strings.TrimSpace(line), ";")
		declaration, ok := strings.CutPrefix(parts[0], "field:")
		if !ok || len(parts) < 3 {
			continue
		}
		name, _, _ := strings.Cut(declaration[strings.LastIndexByte(declaration, ' ')+1:], "[")
		offset, err1 := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(parts[1]), "offset:"), 10, 12)
		size, err2 := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(parts[2]), "size:"), 10, 12)
		if err := errors.Join(err1, err2); err != nil {
			return eventFormat{}, fmt.Errorf("read format of events: line %q: %w", line, err)
		}
		fields[name] = field{int(offset), int(size)}
	}
	f := eventFormat{sector: fields["sector"], count: fields["nr_sector"], op: fields["rwbs"]}
	if f.sector.size != 8 || f.count.size != 4 || f.op.size < 1 {
		return eventFormat{}, fmt.Errorf("read format of events: sector has %d bytes, nr_sector %d, rwbs %d", f.sector.size, f.count.size, f.op.size)
	}
	return f, nil
}

// Records of perf_event_open(2) that are looked at.
const (
	recordLost        = 2
	recordThrottle    = 5
	recordSample      = 9
	recordLostSamples = 13

	recordHeader = 8 // type (4 bytes), misc (2), size (2), in the machine's order
)

// parseRecords reads what a ring buffer holds: the ranges that were written, and how many
// bytes in all. errLost: they are not all.
func parseRecords(b []byte, f eventFormat, add func(snapshot.Range)) error {
	var lost error
	order := binary.NativeEndian
	for len(b) >= recordHeader {
		kind, size := order.Uint32(b), int(order.Uint16(b[6:]))
		if size < recordHeader || size > len(b) {
			return errLost
		}
		switch kind {
		case recordLost, recordThrottle, recordLostSamples:
			lost = errLost
		case recordSample: // a length (4 bytes) and the event
			raw := b[recordHeader:size]
			if len(raw) < 4 || int64(order.Uint32(raw)) > int64(len(raw)-4) {
				return errLost
			}
			raw = raw[4 : 4+order.Uint32(raw)]
			if len(raw) < max(f.sector.offset+8, f.count.offset+4, f.op.offset+f.op.size) {
				return errLost
			}
			op, _, _ := bytes.Cut(raw[f.op.offset:f.op.offset+f.op.size], []byte{0})
			sector, count := order.Uint64(raw[f.sector.offset:]), order.Uint32(raw[f.count.offset:])
			if count == 0 || bytes.HasPrefix(op, []byte("R")) {
				break // a flush, or a read that the kernel's filter let through
			}
			if sector > uint64(MaxSize/sectorSize) {
				return errLost
			}
			add(snapshot.Range{Offset: int64(sector) * sectorSize, Length: int64(count) * sectorSize})
		}
		b = b[size:]
	}
	return lost
}

// parseWritten reads how many bytes a device has written and discarded since it exists from
// its stat file: its 7th field counts sectors written, its 14th sectors discarded, where the
// kernel has that.
func parseWritten(text string) (int64, error) {
	fields := strings.Fields(text)
	if len(fields) < 11 {
		return 0, fmt.Errorf("read statistics of a device: %q", text)
	}
	written := fields[6:7]
	if len(fields) > 13 {
		written = append(written[:1:1], fields[13])
	}
	var sum int64
	for _, s := range written {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read statistics of a device: %w", err)
		}
		sum += n * sectorSize
	}
	return sum, nil
}
