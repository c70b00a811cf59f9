package endpoint

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// What one side encodes the other decodes; one byte less is an error, one more is not.
func TestHelloBoundaries(t *testing.T) {
	t.Parallel()
	for _, h := range []hello{
		{1, 1, "a", nil},
		{1, 65535, strings.Repeat("p", maxPurpose), bytes.Repeat([]byte{7}, maxRight)},
	} {
		b, err := h.encode()
		if err != nil {
			t.Fatal(err)
		}
		for n := range b {
			if _, err := decodeHello(b[:n]); err == nil {
				t.Fatalf("a hello cut at %d was read", n)
			}
		}
		for _, tail := range []string{"", "later versions"} {
			got, err := decodeHello(append(bytes.Clone(b), tail...))
			if err != nil || !reflect.DeepEqual(got, h) {
				t.Fatalf("%+v became %+v: %v", h, got, err)
			}
		}
	}
	for _, h := range []hello{{1, 1, "", nil}, {1, 1, strings.Repeat("p", maxPurpose+1), nil}, {1, 1, "a", make([]byte, maxRight+1)}} {
		if _, err := h.encode(); err == nil {
			t.Errorf("%q with %d bytes was encoded", h.Purpose, len(h.Right))
		}
	}
	if _, err := decodeHello([]byte(magic + "\x00\x02\x00\x01\x01a\x00\x00")); err == nil {
		t.Error("versions 2 … 1 were read")
	}
}

func TestNegotiate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		lowest, highest, want uint16
	}{{1, 1, 1}, {1, 9, 1}, {0, 1, 1}, {2, 9, 0}, {0, 0, 0}} {
		v, err := negotiate(c.lowest, c.highest)
		if v != c.want || (err == nil) != (c.want != 0) || err != nil && !fault.Is(err, fault.Precondition) {
			t.Errorf("%d … %d: %d, %v", c.lowest, c.highest, v, err)
		}
	}
	if _, err := decodeWelcome(encodeWelcome(highestVersion + 1)); err == nil {
		t.Error("a welcome to a version that was not offered was read")
	}
}

func TestErrorsKeepKindAndField(t *testing.T) {
	t.Parallel()
	err := decodeError("beta", encodeError(fault.Field("memory.max", "too much: %s", strings.Repeat("ä", maxText))))
	var remote *RemoteError
	if !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != "memory.max" || !errors.As(err, &remote) || remote.Host != "beta" {
		t.Errorf("got %v", err)
	}
	if got := decodeError("beta", []byte{200, 0, 0, 'x'}); fault.KindOf(got) != fault.Internal {
		t.Errorf("a kind of a later version became %v", got)
	}
}

func TestReadFrameBounds(t *testing.T) {
	t.Parallel()
	frame := append(appendHeader(nil, 16, 3), "abc"...)
	for n := range frame {
		if _, _, err := readFrame(bytes.NewReader(frame[:n]), nil, 3); err == nil {
			t.Errorf("a frame cut at %d was read", n)
		}
	}
	if kind, payload, err := readFrame(bytes.NewReader(frame), nil, 3); kind != 16 || string(payload) != "abc" || err != nil {
		t.Errorf("%d %q %v", kind, payload, err)
	}
	if _, _, err := readFrame(bytes.NewReader(frame), nil, 2); err == nil {
		t.Error("a frame longer than allowed was read")
	}
}

func FuzzDecode(f *testing.F) {
	seed, _ := hello{1, 1, "migrate/1", []byte("secret")}.encode()
	f.Add(seed)
	f.Add(encodeError(fault.Field("a.b", "text")))
	f.Add(append(appendHeader(nil, typeHello, len(seed)), seed...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := decodeHello(b); err == nil {
			again, err := h.encode()
			if err != nil || !bytes.HasPrefix(b, again) {
				t.Errorf("%+v is not what was read: %v", h, err)
			}
		}
		if err := decodeError("h", b); err == nil || len(err.Error()) > maxText+100 {
			t.Error("an error without bounds")
		}
		_, _ = decodeWelcome(b)
		if _, payload, err := readFrame(bytes.NewReader(b), nil, 64); err == nil && len(payload) > 64 {
			t.Error("a frame over its limit")
		}
	})
}
