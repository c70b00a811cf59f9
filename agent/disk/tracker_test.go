package disk

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// Of Linux 6.18.
const completeFormat = `name: block_rq_complete
ID: 1077
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:dev_t dev;	offset:8;	size:4;	signed:0;
	field:sector_t sector;	offset:16;	size:8;	signed:0;
	field:unsigned int nr_sector;	offset:24;	size:4;	signed:0;
	field:int error;	offset:28;	size:4;	signed:1;
	field:unsigned short ioprio;	offset:32;	size:2;	signed:0;
	field:char rwbs[10];	offset:34;	size:10;	signed:0;
	field:__data_loc char[] cmd;	offset:44;	size:4;	signed:0;

print fmt: "%d,%d %s (%s) %llu + %u %s,%u,%u [%d]", REC->dev
`

var completeFields = eventFormat{sector: field{16, 8}, count: field{24, 4}, op: field{34, 10}}

func TestParseFormat(t *testing.T) {
	have, err := parseFormat(completeFormat)
	if err != nil || have != completeFields {
		t.Errorf("format %+v (%v), want %+v", have, err, completeFields)
	}
	for _, bad := range []string{"", "field:sector_t sector;	offset:16;	size:4;", "field:sector_t sector;	offset:x;	size:8;", "field:sector_t sector;	offset:99999;	size:8;"} {
		if _, err := parseFormat(bad); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

// event is a record of a completed request.
func event(sector uint64, sectors uint32, op string) []byte {
	raw := make([]byte, 52)
	binary.NativeEndian.PutUint64(raw[16:], sector)
	binary.NativeEndian.PutUint32(raw[24:], sectors)
	copy(raw[34:], op)
	b := binary.NativeEndian.AppendUint32(nil, uint32(len(raw)))
	return record(recordSample, append(b, raw...))
}

func record(kind uint32, content []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, kind)
	b = binary.NativeEndian.AppendUint16(b, 0)
	b = binary.NativeEndian.AppendUint16(b, uint16(recordHeader+len(content)))
	return append(b, content...)
}

func TestParseRecords(t *testing.T) {
	join := func(all ...[]byte) (b []byte) {
		for _, r := range all {
			b = append(b, r...)
		}
		return b
	}
	write := event(8, 16, "WS")
	written := []snapshot.Range{{Offset: 4096, Length: 8192}}
	for _, c := range []struct {
		name string
		b    []byte
		want []snapshot.Range
		lost bool
	}{
		{"nothing", nil, nil, false},
		{"a write", write, written, false},
		{"a discard", event(0, 8, "D"), []snapshot.Range{{Length: 4096}}, false},
		{"a read", join(event(0, 8, "RA"), write), written, false},
		{"a flush", join(event(0, 0, "FF"), write), written, false},
		{"another record", join(record(99, make([]byte, 16)), write), written, false},
		{"lost ones", join(write, record(recordLost, make([]byte, 16))), written, true},
		{"lost samples", join(record(recordLostSamples, make([]byte, 8)), write), written, true},
		{"throttled", join(record(recordThrottle, make([]byte, 24)), write), written, true},
		{"too long", write[:len(write)-1], nil, true},
		{"no header's size", record(recordSample, nil)[:recordHeader], nil, true},
		{"no end", []byte{9, 0, 0, 0, 0, 0, 0, 0}, nil, true},
		{"a sample without an event", record(recordSample, []byte{4, 0, 0, 0, 1, 2, 3, 4}), nil, true},
		{"a sample that says more than it has", record(recordSample, []byte{200, 0, 0, 0, 1, 2, 3, 4}), nil, true},
		{"nowhere", event(1<<60, 8, "W"), nil, true},
	} {
		var have []snapshot.Range
		err := parseRecords(c.b, completeFields, func(r snapshot.Range) { have = append(have, r) })
		if errors.Is(err, errLost) != c.lost || (err != nil) != c.lost {
			t.Errorf("%s: error %v", c.name, err)
		}
		if diff := cmp.Diff(c.want, have); diff != "" {
			t.Errorf("%s:\n%s", c.name, diff)
		}
	}
}

func FuzzParseRecords(f *testing.F) {
	f.Add(event(8, 16, "WS"))
	f.Add(record(recordLost, make([]byte, 16)))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = parseRecords(b, completeFields, func(r snapshot.Range) {
			if r.Offset < 0 || r.Length <= 0 || r.End() < 0 {
				t.Errorf("range %+v", r)
			}
		})
	})
}

func FuzzParseFormat(f *testing.F) {
	f.Add(completeFormat)
	f.Fuzz(func(t *testing.T, text string) { _, _ = parseFormat(text) })
}

func TestParseWritten(t *testing.T) {
	for text, want := range map[string]int64{
		"1 2 3 4 5 6 70 8 9 10 11\n":                       70 * 512,
		"1 2 3 4 5 6 70 8 9 10 11 12 13 5 15 16 17\n":      75 * 512,
		"  1  2  3  4  5  6  0  8  9  10 11 12 13 0 15 \n": 0,
	} {
		if have, err := parseWritten(text); err != nil || have != want {
			t.Errorf("%q: %d (%v), want %d", text, have, err, want)
		}
	}
	for _, bad := range []string{"", "1 2 3", "1 2 3 4 5 6 x 8 9 10 11"} {
		if _, err := parseWritten(bad); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}
