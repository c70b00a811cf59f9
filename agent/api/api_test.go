package api

import (
	"maps"
	"strings"
	"testing"
)

func TestAddress(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"198.18.0.11:7443":   "198.18.0.11:7443",
		"198.18.0.11":        "198.18.0.11:7443",
		"alpha.example":      "alpha.example:7443",
		"alpha.example:443":  "alpha.example:443",
		"[2001:db8::1]:7443": "[2001:db8::1]:7443",
		"2001:db8::1":        "[2001:db8::1]:7443",
		"":                   "",
		":7443":              "",
		"alpha:0":            "",
		"alpha:65536":        "",
		"alpha:x":            "",
		"https://alpha":      "",
		"alpha/path:1":       "",
		"a b:1":              "",
	} {
		if got, err := Address(in); got != want || (err != nil) != (want == "") {
			t.Errorf("Address(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestParseHosts(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]map[string]string{
		"":                             {},
		"alpha=198.18.0.11":            {"alpha": "198.18.0.11:7443"},
		" alpha=a:1 , beta=b:2,":       {"alpha": "a:1", "beta": "b:2"},
		"alpha=a:1,alpha=a:1":          {"alpha": "a:1"},
		"alpha":                        nil,
		"Alpha=a:1":                    nil,
		"=a:1":                         nil,
		"alpha=":                       nil,
		"alpha=a:1,alpha=a:2":          nil,
		"alpha=a:1;beta=b:1":           nil,
		"reflejo://agent/alpha=a:7443": nil,
	} {
		if got, err := ParseHosts(in); !maps.Equal(got, want) || (err != nil) != (want == nil) {
			t.Errorf("ParseHosts(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	vars := map[string]string{EnvHosts: "alpha=a", EnvCertFile: "x.crt"}
	e, err := FromEnv(func(name string) string { return vars[name] })
	if err != nil || e.Hosts["alpha"] != "a:7443" || e.CertFile != "x.crt" {
		t.Errorf("got %+v, %v", e, err)
	}
	if _, err := e.Credentials(); err == nil || !strings.Contains(err.Error(), EnvCAFile+", "+EnvKeyFile) || strings.Contains(err.Error(), EnvCertFile) {
		t.Errorf("got %v", err)
	}
	vars[EnvHosts] = "alpha"
	if _, err := FromEnv(func(name string) string { return vars[name] }); err == nil || !strings.Contains(err.Error(), EnvHosts) {
		t.Errorf("got %v", err)
	}
}

func TestEndpoint(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ address, told, want string }{
		{"198.18.0.11:7443", "", "198.18.0.11:7444"},
		{"198.18.0.11:7443", ":9000", "198.18.0.11:9000"},
		{"198.18.0.11:7443", "10.0.0.1", "10.0.0.1:7444"},
		{"alpha.example:1", "10.0.0.1:5", "10.0.0.1:5"},
		{"[fd00::1]:7443", "", "[fd00::1]:7444"},
		{"[fd00::1]:7443", "[fd00::2]", "[fd00::2]:7444"},
	} {
		if got := Endpoint(c.address, c.told); got != c.want {
			t.Errorf("Endpoint(%q, %q) = %q, want %q", c.address, c.told, got, c.want)
		}
	}
}
