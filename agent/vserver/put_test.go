package vserver

import (
	"encoding/json"
	"errors"
	"testing"
)

// writes is a store that counts.
type writes struct {
	n    int
	fail error
}

func (w *writes) Put(string, any) error { w.n++; return w.fail }
func (w *writes) Delete(string) error   { return nil }
func (w *writes) ForEach(f func(key string, v []byte) error) error {
	rec := Record{Spec: Spec{ID: "00000000-0000-4000-8000-000000000001", Name: "a"}, Phase: PhaseLive}
	text, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return f(rec.Spec.ID, text)
}

func TestRecordIsWrittenOnlyWhenItDiffers(t *testing.T) {
	w := &writes{}
	m, err := NewManager(Config{Records: w})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	s := m.servers["00000000-0000-4000-8000-000000000001"]
	named := func(name string) func(*Record) { return func(r *Record) { r.Spec.Name = name } }
	for _, tt := range []struct {
		what   string
		change func(*Record)
		fail   error
		want   int // writes so far
	}{
		{"as it was loaded", func(*Record) {}, nil, 0},
		{"another name", named("b"), nil, 1},
		{"the same again", named("b"), nil, 1},
		{"back", named("a"), nil, 2},
		{"a write that fails", named("c"), errors.New("disk full"), 3},
		{"what was before it: the store may have either", named("a"), nil, 4},
	} {
		w.fail = tt.fail
		if err := s.save(tt.change); !errors.Is(err, tt.fail) {
			t.Errorf("%s: %v, want %v", tt.what, err, tt.fail)
		}
		if w.n != tt.want {
			t.Errorf("%s: %d writes so far, want %d", tt.what, w.n, tt.want)
		}
	}
}
