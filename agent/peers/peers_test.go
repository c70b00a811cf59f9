package peers

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/backup/backuptest"
	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// site is an authority and the agents that it has made.
type site struct {
	t  *testing.T
	ca *pki.CA
}

func newSite(t *testing.T) site {
	t.Helper()
	ca, err := pki.NewCA("test", 0)
	if err != nil {
		t.Fatal(err)
	}
	return site{t, ca}
}

func (s site) credentials(name string) func() pki.Credentials {
	s.t.Helper()
	pair, err := s.ca.Issue(pki.Identity{Role: pki.RoleAgent, Name: name}, pki.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := pki.NewCredentials(s.ca.Pair().Cert, pair)
	if err != nil {
		s.t.Fatal(err)
	}
	return func() pki.Credentials { return c }
}

// serve starts beta's endpoint on the loopback.
func (s site) serve(purpose string, h endpoint.Handler) (address string) {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	server := endpoint.NewServer(endpoint.ServerConfig{Credentials: s.credentials("beta")})
	server.Handle(purpose, h)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	s.t.Cleanup(func() {
		if err := errors.Join(server.Shutdown(context.Background()), <-served); err != nil {
			s.t.Error(err)
		}
	})
	return l.Addr().String()
}

// config is alpha's, which knows beta.
func (s site) config(address string) Config {
	return Config{Credentials: s.credentials("alpha"), Hosts: map[string]string{"beta": address}}
}

func open(t *testing.T, cfg Config) backup.Target {
	t.Helper()
	target, err := New(cfg).Open(t.Context(), "beta")
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func wantKind(t *testing.T, what string, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("%s: %v, want %s", what, err, kind)
	}
}

func second[T any](_ T, err error) error { return err }

func ref(m backup.Manifest) backup.Ref {
	return backup.Ref{Server: m.Snapshot.Server, Backup: m.ID}
}

// backUp makes a backup of m's chunks complete, from where it was left.
func backUp(ctx context.Context, target backup.Target, m backup.Manifest) error {
	up, err := target.Append(ctx, ref(m), backup.MostBytes(m.Snapshot.Size))
	if fault.Is(err, fault.Exists) {
		return nil
	}
	if err != nil {
		return err
	}
	w, err := backup.NewWriter(up, m, up.State())
	for err == nil && w.State().Next < m.Snapshot.Size {
		at := w.State().Next
		err = w.Data(at, backuptest.Chunk(at/snapshot.ChunkSize))
	}
	if err == nil {
		_, err = w.Close()
	}
	if err != nil {
		up.Close()
		return err
	}
	return up.Commit()
}

// download reads a whole file from an offset on.
func download(ctx context.Context, target backup.Target, f backup.Ref, offset int64) ([]byte, error) {
	r, err := target.Open(ctx, f, offset)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestContract(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cfg := s.config(s.serve(PurposeBackup, Handler(t.TempDir())))
	backuptest.Target(t, func() backup.Target {
		target, err := backup.Targets{Remote: New(cfg)}.Open(t.Context(), "host:beta")
		if err != nil {
			t.Fatal(err)
		}
		return target
	})
}

// What one host has put into a store another one can take out.
func TestAnotherHostRecovers(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cfg := s.config(s.serve(PurposeBackup, Handler(t.TempDir())))
	m := backuptest.Manifest(uuid.NewString(), 2)
	if err := backUp(t.Context(), open(t, cfg), m); err != nil {
		t.Fatal(err)
	}
	cfg.Credentials = s.credentials("gamma")
	all, err := download(t.Context(), open(t, cfg), ref(m), 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := backup.NewReader(bytes.NewReader(all))
	for err == nil {
		_, err = r.Next()
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("read back: %v", err)
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := New(Config{Credentials: s.credentials("alpha"), Hosts: map[string]string{"gamma": "127.0.0.1:1", "beta": "127.0.0.1:1"}})
	if got := p.Hosts(); !slices.Equal(got, []string{"beta", "gamma"}) {
		t.Errorf("hosts: %v", got)
	}
	_, oerr := p.Open(t.Context(), "delta")
	_, terr := p.Term(t.Context(), "delta", uuid.NewString())
	for _, err := range []error{oerr, terr} {
		wantKind(t, "unknown host", err, fault.NotFound)
		for _, part := range []string{"beta, gamma", `host "delta" { endpoint =`} {
			if err != nil && !strings.Contains(err.Error(), part) {
				t.Errorf("%v does not say %q", err, part)
			}
		}
	}
	if _, err := New(Config{}).Open(t.Context(), strings.Repeat("x", 1<<20)); !fault.Is(err, fault.NotFound) || len(err.Error()) > 500 {
		t.Errorf("a long name: %d characters", len(err.Error()))
	}
	target, err := p.Open(t.Context(), "beta")
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, "a host that is away", second(target.List(t.Context(), "")), fault.Unavailable)
	wantKind(t, "term of a host that is away", second(p.Term(t.Context(), "beta", uuid.NewString())), fault.Unavailable)
}

func TestStoreThatIsNot(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for name, c := range map[string]struct {
		purpose, store string
		kind           fault.Kind
	}{
		"not configured":  {PurposeBackup, "", fault.Precondition},
		"not mounted":     {PurposeBackup, filepath.Join(t.TempDir(), "away"), fault.Unavailable},
		"an older agent":  {PurposeTerm, t.TempDir(), fault.Precondition},
		"another purpose": {"backup/2", t.TempDir(), fault.Precondition},
	} {
		target := open(t, s.config(s.serve(c.purpose, Handler(c.store))))
		id, f := uuid.NewString(), backup.Ref{Server: uuid.NewString(), Backup: uuid.NewString()}
		for method, err := range map[string]error{
			"append": second(target.Append(t.Context(), f, 1<<20)),
			"open":   second(target.Open(t.Context(), f, 0)),
			"list":   second(target.List(t.Context(), "")),
			"delete": target.Delete(t.Context(), f),
			"load":   second(target.Load(t.Context(), id)),
			"swap":   target.Swap(t.Context(), id, nil, []byte("x")),
		} {
			wantKind(t, name+": "+method, err, c.kind)
		}
	}
}

// A file is written by one at a time; others are told to come later, and can once it is
// closed, committed or its writer has gone.
func TestOneWriterPerFile(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cfg := s.config(s.serve(PurposeBackup, Handler(t.TempDir())))
	other := cfg
	other.Credentials = s.credentials("gamma")
	f := backup.Ref{Server: uuid.NewString(), Backup: uuid.NewString()}
	for _, end := range []func(backup.Upload) error{backup.Upload.Close, backup.Upload.Close, backup.Upload.Commit} {
		up, err := open(t, cfg).Append(t.Context(), f, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []Config{cfg, other} {
			wantKind(t, "a second writer", second(open(t, c).Append(t.Context(), f, 1<<20)), fault.Unavailable)
		}
		twin := f
		twin.Backup = uuid.NewString()
		second, err := open(t, cfg).Append(t.Context(), twin, 1<<20)
		if err != nil {
			t.Fatalf("a writer of another file: %v", err)
		}
		if err := errors.Join(second.Close(), end(up), up.Close()); err != nil {
			t.Fatal(err)
		}
	}
	wantKind(t, "append to what is complete", second(open(t, cfg).Append(t.Context(), f, 1<<20)), fault.Exists)
}

func TestContextsEndWhatTheyBegan(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cfg := s.config(s.serve(PurposeBackup, Handler(t.TempDir())))
	target, m := open(t, cfg), backuptest.Manifest(uuid.NewString(), 8)
	if err := backUp(t.Context(), target, m); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, err := target.Open(ctx, ref(m), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f := backup.Ref{Server: uuid.NewString(), Backup: uuid.NewString()}
	up, err := target.Append(ctx, f, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	_, err = io.Copy(io.Discard, r)
	if !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("read of a cancelled call: %v", err)
	}
	for err = nil; err == nil; {
		_, err = up.Write(make([]byte, 1<<16))
	}
	if !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("write of a cancelled call: %v", err)
	}
	wantKind(t, "commit of a cancelled call", up.Commit(), fault.Unavailable)
	if err := second(target.List(ctx, "")); !errors.Is(err, context.Canceled) {
		t.Errorf("a call with a context that is over: %v", err)
	}
}

func TestEmptyNoteIsOne(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	target, id := open(t, s.config(s.serve(PurposeBackup, Handler(t.TempDir())))), uuid.NewString()
	if err := target.Swap(t.Context(), id, nil, []byte{}); err != nil {
		t.Fatal(err)
	}
	if note, err := target.Load(t.Context(), id); err != nil || note == nil || len(note) != 0 {
		t.Errorf("loaded %v, %v", note, err)
	}
	wantKind(t, "swap as if nothing were there", target.Swap(t.Context(), id, nil, []byte("x")), fault.Aborted)
	large := bytes.Repeat([]byte{7}, 64<<10)
	for _, swap := range [][2][]byte{{{}, large}, {large, large[1:]}} {
		if err := target.Swap(t.Context(), id, swap[0], swap[1]); err != nil {
			t.Fatal(err)
		}
		if note, err := target.Load(t.Context(), id); err != nil || !bytes.Equal(note, swap[1]) {
			t.Errorf("of %d bytes %d were loaded: %v", len(swap[1]), len(note), err)
		}
	}
	wantKind(t, "a huge note", target.Swap(t.Context(), id, nil, make([]byte, maxText)), fault.Invalid)
}

// Lists longer than an answer come whole.
func TestLongList(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	store := t.TempDir()
	target, want := open(t, s.config(s.serve(PurposeBackup, Handler(store)))), map[backup.Ref]bool{}
	server := uuid.NewString()
	for n := 0; n <= 2*maxFiles; n++ {
		f := backup.Ref{Server: server, Backup: uuid.NewString()}
		want[f] = true
		writeFile(t, filepath.Join(store, f.Server, f.Backup+".rbk"))
		if n+1 == maxFiles || n+1 == maxFiles+1 || n == 2*maxFiles {
			all, err := target.List(t.Context(), server)
			if err != nil || len(all) != n+1 {
				t.Fatalf("of %d files %d are listed: %v", n+1, len(all), err)
			}
			for _, f := range all {
				if !want[f.Ref] || f.Size != 1 || !f.Complete {
					t.Fatalf("listed %+v", f)
				}
			}
		}
	}
}

func TestTerm(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := uuid.NewString()
	p := New(s.config(s.serve(PurposeTerm, TermHandler(func(server string) uint64 {
		if server == id {
			return 1<<63 + 5
		}
		return 0
	}))))
	for server, want := range map[string]uint64{id: 1<<63 + 5, uuid.NewString(): 0} {
		if got, err := p.Term(t.Context(), "beta", server); got != want || err != nil {
			t.Errorf("term of %s: %d, %v, want %d", server, got, err, want)
		}
	}
	for _, bad := range []string{"", "web", "../x", strings.ToUpper(id)} {
		wantKind(t, "term of "+bad, second(p.Term(t.Context(), "beta", bad)), fault.Invalid)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantKind(t, "a call that is over", second(p.Term(ctx, "beta", id)), fault.Unavailable)
}
