package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/service"
)

// failing is how a server's policy does; one without a name or an error does not fail.
type failing struct {
	server           string
	tried, succeeded time.Time
	err              string
}

// mostNamed is how many servers a condition tells of by name.
const mostNamed = 5

// failingPolicies are the condition of policies that fail, or none: which servers', why,
// since when nothing was made, and what to do.
func failingPolicies(kind, what, hint string, all []failing) []service.Condition {
	all = slices.DeleteFunc(slices.Clone(all), func(f failing) bool { return f.server == "" || f.err == "" })
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(x, y failing) int { return cmp.Compare(x.server, y.server) })
	c := service.Condition{Type: kind, Severity: service.SeverityWarning, Since: all[0].tried}
	var list []string
	for i, f := range all {
		if f.tried.Before(c.Since) {
			c.Since = f.tried
		}
		if i >= mostNamed {
			continue
		}
		last := "there is none yet"
		if !f.succeeded.IsZero() {
			last = "the last one is of " + f.succeeded.UTC().Format(time.RFC3339)
		}
		list = append(list, fmt.Sprintf("server %s (%s): %s", f.server, last, f.err))
	}
	if more := len(all) - mostNamed; more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	c.Message = fmt.Sprintf("%s: %s; %s", what, strings.Join(list, "; "), hint)
	return []service.Condition{c}
}

// policyConditions tell of the servers' policies that fail.
func (ag *agent) policyConditions() []service.Condition {
	name := func(id string) string {
		v, err := ag.servers.Get(id)
		if err != nil {
			return "" // it goes at this moment, and its policy with it
		}
		return v.Spec.Name
	}
	var backups, snapshots []failing
	for _, r := range ag.backups.Runs() {
		backups = append(backups, failing{name(r.Server), r.Tried, r.Succeeded, r.Err})
	}
	for _, r := range ag.policies.Runs() {
		snapshots = append(snapshots, failing{name(r.Server), r.Tried, r.Succeeded, r.Err})
	}
	return append(
		failingPolicies("BackupFailing", "the last backup that the policy was to make failed", "look whether the target answers and has room (`reflejo backup list --target TARGET`); the next run is at the policy's next time", backups),
		failingPolicies("SnapshotPolicyFailing", "the last snapshot that the policy was to take failed", "look whether the pool has room (`reflejo status`, `reflejo snapshot list`); it is tried again by itself", snapshots)...)
}
