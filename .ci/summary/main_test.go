package main

import (
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	tests := map[string]struct {
		in     string
		want   counts
		prints string
		hides  string
	}{
		"pass": {
			`{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`, counts{packages: 1, passed: 1}, "ok  \tp\t0.1s", "chatter"},
		"a failed test": {
			`{"Action":"output","Package":"p","Test":"TestA","Output":"want 1\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}
`, counts{packages: 1, failed: 1}, "want 1\nFAIL\tp\t0.1s", "ok"},
		"a crash": {
			`{"Action":"output","Package":"p","Test":"TestA","Output":"panic: no\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}
`, counts{packages: 1, failed: 1}, "panic: no", "ok"},
		"no build": {
			`{"ImportPath":"p","Action":"build-output","Output":"p.go:1:1: oops\n"}
{"Action":"fail","Package":"p"}
`, counts{packages: 1, failed: 1}, "oops", "ok"},
		"a skip": {
			`{"Action":"output","Package":"p","Test":"TestA","Output":"not today\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`, counts{packages: 1, skipped: 1}, "not today", "FAIL"},
		"no tests": {
			`{"Action":"output","Package":"p","Output":"?   \tp\t[no test files]\n"}
{"Action":"skip","Package":"p"}
`, counts{}, "", "no test files"},
		"not JSON": {"go: no such tool\n", counts{}, "go: no such tool", "ok"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			s := newSummary(&out)
			if err := s.read(strings.NewReader(tt.in)); err != nil {
				t.Fatal(err)
			}
			if s.counts != tt.want {
				t.Errorf("counts = %+v, want %+v", s.counts, tt.want)
			}
			if !strings.Contains(out.String(), tt.prints) || strings.Contains(out.String(), tt.hides) {
				t.Errorf("printed %q, want %q and not %q", out.String(), tt.prints, tt.hides)
			}
		})
	}
}
