package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/service"
)

func TestFailingPolicies(t *testing.T) {
	at := func(n int64) time.Time { return time.Unix(n, 0).UTC() }
	fine := []failing{{"fine", at(1), at(1), ""}, {"", at(1), time.Time{}, "it is going"}}
	if c := failingPolicies("BackupFailing", "what", "hint", fine); c != nil {
		t.Errorf("nothing fails: %+v", c)
	}
	two := append([]failing{{"web", at(9000), time.Time{}, "it is full"}, {"db", at(8000), at(7000), "it is away"}}, fine...)
	want := service.Condition{Type: "BackupFailing", Severity: service.SeverityWarning, Since: at(8000),
		Message: "backups fail: server db (the last one is of 1970-01-01T01:56:40Z): it is away; server web (there is none yet): it is full; look"}
	if c := failingPolicies("BackupFailing", "backups fail", "look", two); len(c) != 1 || c[0] != want {
		t.Errorf("%+v, want %+v", c, want)
	}
	var many []failing
	for i := range 100 {
		many = append(many, failing{fmt.Sprintf("web-%02d", i), at(int64(i)), time.Time{}, "it is away"})
	}
	if c := failingPolicies("BackupFailing", "backups fail", "look", many)[0].Message; !strings.Contains(c, "web-04") || strings.Contains(c, "web-05") || !strings.Contains(c, "and 95 more") {
		t.Error(c)
	}
}
