package peers

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/backup/backuptest"
	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

func writeFile(t *testing.T, name string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// frame is one that a test sends.
type frame struct {
	kind    byte
	payload string
}

func calling(q call) frame {
	text, err := q.encode()
	if err != nil {
		panic(err)
	}
	return frame{typeCall, string(text)}
}

func answering(a answer) frame {
	text, err := a.encode()
	if err != nil {
		panic(err)
	}
	return frame{typeAnswer, string(text)}
}

// exchange sends frames to beta as they are, and receives until the end, whose reason it returns.
func exchange(t *testing.T, cfg Config, purpose string, frames ...frame) error {
	t.Helper()
	c, err := endpoint.Dial(t.Context(), endpoint.Config{Host: "beta", Address: cfg.Hosts["beta"], Credentials: cfg.Credentials, Purpose: purpose})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, f := range frames {
		if c.Send(f.kind, []byte(f.payload)) != nil {
			break // the reason comes with the next Receive
		}
	}
	for err == nil {
		_, err = c.Receive()
	}
	return err
}

// A store refuses what has no place, and goes on.
func TestNonsenseFromCallers(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cfg := s.config(s.serve(PurposeBackup, Handler(t.TempDir())))
	m := backuptest.Manifest(uuid.NewString(), 1)
	appending := calling(call{Method: methodAppend, Server: m.Snapshot.Server, Backup: m.ID})
	for name, frames := range map[string][]frame{
		"data first":         {{typeData, "x"}},
		"commit first":       {{typeCommit, ""}},
		"an answer":          {{typeAnswer, "{}"}},
		"an unknown type":    {{99, ""}},
		"no JSON":            {{typeCall, "\x00"}},
		"an empty call":      {{typeCall, ""}},
		"another JSON":       {{typeCall, "[1]"}},
		"two JSONs":          {{typeCall, "{}{}"}},
		"a huge call":        {{typeCall, `{"method":"` + strings.Repeat("x", maxText) + `"}`}},
		"a negative offset":  {{typeCall, `{"method":"open","offset":-1}`}},
		"a negative bound":   {{typeCall, `{"method":"append","most":-1}`}},
		"a number too large": {{typeCall, `{"method":"open","offset":9223372036854775808}`}},
		"a path":             {calling(call{Method: methodDelete, Server: "..", Backup: "../x"})},
		"empty data":         {appending, {typeData, ""}},
		"too much data":      {appending, {typeData, strings.Repeat("x", maxData+1)}},
		"a call in a call":   {appending, appending},
		"commit with text":   {appending, {typeCommit, "x"}},
		"close with text":    {appending, {typeClose, "x"}},
		"an answer to it":    {appending, {typeAnswer, "{}"}},
	} {
		wantKind(t, name, exchange(t, cfg, PurposeBackup, frames...), fault.Invalid)
	}
	wantKind(t, "a method of later versions", exchange(t, cfg, PurposeBackup, frame{typeCall, `{"method":"rename"}`}), fault.Precondition)
	if err := exchange(t, cfg, PurposeBackup, frame{typeCall, `{"method":"list","later":[1]}`}); err != io.EOF {
		t.Errorf("a field of later versions: %v", err)
	}
	if err := backUp(t.Context(), open(t, cfg), m); err != nil {
		t.Errorf("after nonsense: %v", err)
	}
}

func TestNonsenseTerms(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cfg := s.config(s.serve(PurposeTerm, TermHandler(func(server string) uint64 {
		t.Errorf("asked for %q", server)
		return 1
	})))
	for name, f := range map[string]frame{"empty": {typeQuestion, ""}, "no id": {typeQuestion, "../x"}, "another type": {typeTerm, uuid.NewString()}, "long": {typeQuestion, strings.Repeat("x", 1<<20)}} {
		wantKind(t, name, exchange(t, cfg, PurposeTerm, f), fault.Invalid)
	}
	for name, c := range map[string]struct {
		frames []frame
		kind   fault.Kind
	}{
		"nothing":   {nil, fault.Unavailable},
		"short":     {[]frame{{typeTerm, "1234567"}}, fault.Internal},
		"long":      {[]frame{{typeTerm, "123456789"}}, fault.Internal},
		"other":     {[]frame{{typeQuestion, "12345678"}}, fault.Internal},
		"and empty": {[]frame{{typeTerm, ""}}, fault.Internal},
	} {
		p := New(s.config(s.serve(PurposeTerm, script(c.frames, false))))
		wantKind(t, name, second(p.Term(t.Context(), "beta", uuid.NewString())), c.kind)
	}
}

// script is a handler that says what it is told to, whatever it is asked: once, or without end.
func script(frames []frame, endless bool) endpoint.Handler {
	return func(_ context.Context, c *endpoint.Conn) error {
		if _, err := c.Receive(); err != nil {
			return err
		}
		for again := true; again; again = endless {
			for _, f := range frames {
				if err := c.Send(f.kind, []byte(f.payload)); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// each calls every method of a target to its end, with its error.
func each(t *testing.T, target backup.Target) map[string]error {
	f := backup.Ref{Server: uuid.NewString(), Backup: uuid.NewString()}
	up, aerr := target.Append(t.Context(), f, 1<<20)
	if aerr == nil {
		aerr = up.Commit()
		if cerr := up.Close(); cerr != nil {
			t.Errorf("close after commit: %v", cerr)
		}
	}
	return map[string]error{
		"append": aerr,
		"open":   second(download(t.Context(), target, f, 0)),
		"list":   second(target.List(t.Context(), f.Server)),
		"delete": target.Delete(t.Context(), f),
		"load":   second(target.Load(t.Context(), f.Server)),
		"swap":   target.Swap(t.Context(), f.Server, nil, []byte("x")),
	}
}

// A caller does not believe what can't be, and what never ends it ends.
func TestNonsenseFromStores(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id, empty, state := uuid.NewString(), answering(answer{}), answering(answer{State: &backup.State{}})
	files := make([]backup.File, maxFiles)
	for i := range files {
		files[i] = backup.File{Ref: backup.Ref{Server: id, Backup: id}}
	}
	list := func(f backup.File) []frame { return []frame{answering(answer{Files: []backup.File{f}})} }
	for name, c := range map[string]struct {
		methods string // that must fail; "" means all
		kind    fault.Kind
		frames  []frame
		endless bool
	}{
		"nothing":             {"", fault.Unavailable, nil, false},
		"an unknown type":     {"", fault.Internal, []frame{{99, "{}"}}, true},
		"data first":          {"", fault.Internal, []frame{{typeData, "x"}}, true},
		"no JSON":             {"", fault.Internal, []frame{{typeAnswer, "{"}}, true},
		"a huge answer":       {"", fault.Internal, []frame{{typeAnswer, strings.Repeat(" ", maxText) + "{}"}}, true},
		"more of nothing":     {"", fault.Internal, []frame{{typeAnswer, `{"more":true}`}}, true},
		"negative state":      {"", fault.Internal, []frame{{typeAnswer, `{"state":{"Next":-1}}`}}, true},
		"no state":            {"append", fault.Internal, []frame{empty}, true},
		"an end after state":  {"append", fault.Unavailable, []frame{state}, false},
		"data after commit":   {"append", fault.Internal, []frame{state, {typeData, "x"}}, true},
		"no end of the file":  {"open", fault.Unavailable, []frame{empty, {typeData, "x"}}, false},
		"empty data":          {"open", fault.Internal, []frame{empty, {typeData, ""}}, false},
		"too much data":       {"open", fault.Internal, []frame{empty, {typeData, strings.Repeat("x", maxData+1)}}, false},
		"commit of a read":    {"open", fault.Internal, []frame{empty, {typeCommit, ""}}, false},
		"files without end":   {"list", fault.Internal, []frame{answering(answer{Files: files, More: true})}, true},
		"files of nobody":     {"list", fault.Internal, list(backup.File{Ref: backup.Ref{Server: "..", Backup: id}}), false},
		"a file named a path": {"list", fault.Internal, list(backup.File{Ref: backup.Ref{Server: id, Backup: "../x"}}), false},
		"a negative size":     {"list", fault.Internal, list(backup.File{Ref: backup.Ref{Server: id, Backup: id}, Size: -1}), false},
		"another's files":     {"list", fault.Internal, list(backup.File{Ref: backup.Ref{Server: id, Backup: id}}), false},
	} {
		if name == "files without end" { // of the server that is asked for
			target := open(t, s.config(s.serve(PurposeBackup, script(c.frames, c.endless))))
			wantKind(t, name, second(target.List(t.Context(), id)), c.kind)
			continue
		}
		for method, err := range each(t, open(t, s.config(s.serve(PurposeBackup, script(c.frames, c.endless))))) {
			if c.methods == "" || strings.Contains(c.methods, method) {
				wantKind(t, name+": "+method, err, c.kind)
			}
		}
	}
}

// Frames of any kind in any order leave a store that still works, with all it had.
func TestRandomFrames(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cfg := s.config(s.serve(PurposeBackup, Handler(t.TempDir())))
	m := backuptest.Manifest(uuid.NewString(), 1)
	if err := backUp(t.Context(), open(t, cfg), m); err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 3))
		server := uuid.NewString()
		var frames []frame
		for range 1 + r.IntN(5) {
			methods := []string{methodAppend, methodOpen, methodList, methodDelete, methodLoad, methodSwap, "", "x"}
			q := calling(call{Method: methods[r.IntN(len(methods))], Server: server, Backup: uuid.NewString(), Offset: r.Int64N(100), Note: []byte("x")})
			f := []frame{q, q, {typeData, strings.Repeat("y", r.IntN(1<<18))}, {typeCommit, ""}, {typeClose, ""}, {byte(16 + r.IntN(240)), "z"}}[r.IntN(6)]
			if r.IntN(3) == 0 && len(f.payload) > 0 {
				p := []byte(f.payload)
				p[r.IntN(len(p))] ^= byte(1 << r.IntN(8))
				f.payload = string(p)
			}
			frames = append(frames, f)
		}
		frames = append(frames, frame{typeClose, ""}, frame{typeClose, "end"})
		if err := exchange(t, cfg, PurposeBackup, frames...); err == nil || fault.Is(err, fault.Unavailable) {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
	if all, err := open(t, cfg).List(t.Context(), m.Snapshot.Server); err != nil || len(all) != 1 {
		t.Errorf("after all: %v, %v", all, err)
	}
}

func TestCodecBounds(t *testing.T) {
	t.Parallel()
	id := uuid.NewString()
	for _, q := range []call{
		{Method: methodSwap, Server: id},
		{Method: methodSwap, Server: id, Old: []byte{}, Note: []byte{0, 255}},
		{Method: methodSwap, Server: id, Old: make([]byte, 64<<10), Note: make([]byte, 64<<10)},
		{Method: methodOpen, Server: id, Backup: id, Offset: 1<<63 - 1},
	} {
		text, err := q.encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeCall(text); err != nil || !reflect.DeepEqual(got, q) {
			t.Errorf("%+v became %+v: %v", q, got, err)
		}
		for n := range min(len(text), 300) {
			if _, err := decodeCall(text[:n]); err == nil {
				t.Fatalf("a call cut at %d was read", n)
			}
		}
	}
	largest := make([]backup.File, maxFiles)
	for i := range largest {
		largest[i] = backup.File{Ref: backup.Ref{Server: id, Backup: id}, Size: 1<<63 - 1, Complete: true}
	}
	for _, a := range []answer{{}, {Note: make([]byte, 64<<10)}, {Files: largest, More: true}, {State: &backup.State{Next: 1<<63 - 1}}} {
		text, err := a.encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeAnswer(text); err != nil || !reflect.DeepEqual(got, a) {
			t.Errorf("an answer became another: %v", err)
		}
	}
	wantKind(t, "a call that can't be sent", second(call{Note: make([]byte, maxText)}.encode()), fault.Invalid)
	wantKind(t, "an answer that can't be sent", second(answer{Note: make([]byte, maxText)}.encode()), fault.Internal)
	wantKind(t, "too many files", second(decodeAnswer([]byte(`{"files":[{}`+strings.Repeat(",{}", maxFiles)+`]}`))), fault.Internal)
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(calling(call{Method: methodSwap, Server: uuid.Nil.String(), Old: []byte{}, Note: []byte("x")}).payload))
	f.Add([]byte(calling(call{Method: methodOpen, Server: uuid.Nil.String(), Backup: uuid.Nil.String(), Offset: 7}).payload))
	f.Add([]byte(answering(answer{State: &backup.State{Next: 1 << 20, Ended: true}}).payload))
	f.Add([]byte(answering(answer{Files: []backup.File{{Size: 3}}, More: true}).payload))
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, err := decodeCall(b); err == nil {
			if q.Offset < 0 || q.Most < 0 {
				t.Errorf("%+v was read", q)
			}
			// Text that is no UTF-8 or has to be escaped may become too long to be sent on.
			if text, err := q.encode(); err == nil {
				if again, err := decodeCall(text); err != nil || fmt.Sprintf("%+v", again) != fmt.Sprintf("%+v", q) || (again.Old == nil) != (q.Old == nil) {
					t.Errorf("%+v became %+v: %v", q, again, err)
				}
			}
		}
		if a, err := decodeAnswer(b); err == nil {
			if len(a.Files) > maxFiles {
				t.Errorf("%d files", len(a.Files))
			}
			if text, err := a.encode(); err == nil {
				again, err := decodeAnswer(text)
				if more, _ := again.encode(); err != nil || !bytes.Equal(more, text) {
					t.Errorf("%q became %q: %v", text, more, err)
				}
			}
		}
	})
}
