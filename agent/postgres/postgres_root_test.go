//go:build linux && root

package postgres

import (
	"strings"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

func TestClusters(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"clients", clients},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.t = t
			test.run(t, w)
		})
	}
}

// A client on the network gets in with the password and over TLS, and nobody else does.
func clients(t *testing.T, w *world) {
	c := w.made("orders", 5432)
	if out, err := w.psql(c, "sslmode=require", "CREATE TABLE t(a int); INSERT INTO t VALUES (42); SELECT a FROM t"); err != nil || out != "42" {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := w.psql(c, "sslmode=disable", "SELECT 1"); err == nil || !strings.Contains(out, "pg_hba.conf") {
		t.Errorf("without TLS: %v: %s", err, out)
	}
	if out, err := w.psql(c, "user=reflejo", "SELECT 1"); err == nil {
		t.Errorf("as the agent: %v: %s", err, out)
	}
	h, err := w.Inspect(t.Context(), c)
	if err != nil || !h.Made || !h.Running || h.Identity != c.Identity || h.Problem != "" {
		t.Errorf("%+v %v", h, err)
	}
	if d, err := w.ControlData(t.Context(), c); err != nil || !d.Checksums || d.State != "in production" {
		t.Errorf("%+v %v", d, err)
	}
	other := c
	other.Identity = "1"
	if err := w.Run(t.Context(), other); !fault.Is(err, fault.Precondition) {
		t.Errorf("files of another identity were run: %v", err)
	}
	_ = database.EffectNone
}
