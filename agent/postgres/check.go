package postgres

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// effect is what a change of parameters needs, by when each can change.
func effect(contexts, was, want map[string]string) database.Effect {
	result := database.EffectNone
	for _, name := range slices.Sorted(maps.Keys(merged(was, want))) {
		before, had := was[name]
		after, has := want[name]
		switch {
		case had == has && before == after:
		case contexts[name] == "postmaster":
			return database.EffectRestart
		default:
			result = database.EffectReload
		}
	}
	return result
}

func merged(a, b map[string]string) map[string]string {
	m := maps.Clone(a)
	if m == nil {
		m = map[string]string{}
	}
	maps.Copy(m, b)
	return m
}

// refuse is why a parameter can't be in the file at all, nil if it can.
func refuse(contexts map[string]string, name string) error {
	if contexts[name] == "internal" {
		return fault.Field("parameters."+name, "parameter %s can't be set: it is fixed when a cluster is made", name)
	}
	return nil
}

// different lists what of the settings that the agent relies on a server has otherwise; a
// setting that its version does not have is no difference.
func different(want, have map[string]string) []string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got, ok := have[name]; ok && got != want[name] {
			all = append(all, fmt.Sprintf("%s is %q, not %q", name, got, want[name]))
		}
	}
	return all
}

// refusal is what postgres printed when it did not take a setting, in one line for people.
func refusal(out string) string {
	var parts []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		for _, level := range []string{"FATAL:  ", "DETAIL:  ", "HINT:  ", "LOG:  ", "ERROR:  "} {
			if _, text, ok := strings.Cut(line, level); ok {
				line = text
				break
			}
		}
		if line != "" {
			parts = append(parts, strings.TrimSuffix(line, "."))
		}
	}
	return strings.Join(parts[:min(len(parts), 6)], "; ")
}

// ownerStatements make the owner's role as wanted, given the rows (password, may log in) of
// it that are there.
func ownerStatements(c database.Cluster, roles [][]string) []string {
	var s []string
	password, login := "", "t"
	if len(roles) == 0 {
		s = append(s, "CREATE ROLE "+quoteName(c.Owner)+" LOGIN")
	} else {
		password, login = roles[0][0], roles[0][1]
	}
	if login != "t" {
		s = append(s, "ALTER ROLE "+quoteName(c.Owner)+" LOGIN")
	}
	if c.Secret != "" && password != c.Secret {
		s = append(s, "ALTER ROLE "+quoteName(c.Owner)+" PASSWORD "+quoteText(c.Secret))
	}
	return s
}
