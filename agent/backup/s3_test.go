package backup

import (
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// S3Store is an S3 server on loopback, in this process, that counts what it is sent.
type S3Store struct {
	url string

	mu    sync.Mutex
	parts int              // sent
	most  int              // parts that there is room for; 0: any
	away  bool             // it was, once, before the third part
	fail  http.HandlerFunc // answers instead, if not nil
}

// NewS3Store starts one that has a bucket.
func NewS3Store(t *testing.T) *S3Store {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	inner := gofakes3.New(backend).Server()
	s := &S3Store{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		fail := s.fail
		if r.Method == http.MethodPut && r.URL.Query().Has("partNumber") {
			if s.most > 0 && s.parts == s.most {
				fail = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInsufficientStorage) }
			} else if s.parts == 2 && !s.away {
				s.away = true
				fail = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
			} else {
				s.parts++
			}
		}
		s.mu.Unlock()
		if fail != nil {
			fail(w, r)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// Fail makes it answer every request so, until it is nil.
func (s *S3Store) Fail(f http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

// Targets has it as the store of all buckets.
func (s *S3Store) Targets() Targets {
	return Targets{S3: []S3{{Endpoint: s.url, AccessKey: "AKEY", SecretKey: "SECRET", PathStyle: true}}}
}

// Parts is how many parts were sent to it.
func (s *S3Store) Parts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.parts
}

// An upload to a store that is full after every part goes on, over restarts of the agent, and
// no part is sent twice. That the store is away for a moment nobody notices.
func TestS3ThroughManager(t *testing.T) {
	s := NewS3Store(t)
	h := newHost(t, 1, 34<<20)
	if _, err := rand.Read(h.now.content); err != nil {
		t.Fatal(err)
	}
	h.now.data = []snapshot.Range{{Offset: 0, Length: 34 << 20}}
	a := newAgent(t, h)
	defer func() { a.Close() }()
	a.stores.Targets, a.target = s.Targets(), "s3://bucket/prefix"
	a.cfg.Delays = []time.Duration{}
	a.restart()
	req := Request{ID: newID(), Snapshot: h.take(newID()).ID}
	for parts := 1; ; parts++ {
		s.allow(parts)
		v := a.make(req)
		if v.State == PhaseReady {
			a.check(h, v)
			if parts != 5 || s.Parts() != 5 {
				t.Errorf("ready after %d goes and %d parts sent, want 5 and 5", parts, s.Parts())
			}
			break
		}
		if v.Operation.ErrKind != fault.Exhausted.String() || parts > 5 {
			t.Fatalf("after part %d: %+v", parts, v)
		}
		a.restart()
	}
	if all, err := a.Catalog(t.Context(), a.target, h.server); err != nil || len(all) != 1 || all[0].Problem != "" {
		t.Errorf("%+v, %v", all, err)
	}
	if err := a.Delete(t.Context(), "", req.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Settled(t.Context(), req.ID); err != nil && !fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
	if all, err := a.Catalog(t.Context(), a.target, ""); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

// allow makes the store full from when it has n parts.
func (s *S3Store) allow(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.most = n
}
