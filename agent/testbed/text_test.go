package testbed

import (
	"strings"
	"testing"
)

func TestConfigCheck(t *testing.T) {
	good := Config{Dir: "/d", Bin: "/b"}
	tests := map[string]struct {
		change func(*Config)
		want   string
	}{
		"plain":          {func(*Config) {}, ""},
		"named":          {func(c *Config) { c.Name = "t1a2b3" }, ""},
		"part of hosts":  {func(c *Config) { c.Hosts = []string{"beta"} }, ""},
		"long name":      {func(c *Config) { c.Name = "abcdefghi" }, "longer than 8"},
		"bad name":       {func(c *Config) { c.Name = "a/b" }, "characters other than"},
		"unknown host":   {func(c *Config) { c.Hosts = []string{"delta"} }, `host "delta" is unknown`},
		"relative paths": {func(c *Config) { c.Dir = "d" }, "must be absolute"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := good
			tt.change(&c)
			err := c.check()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("check = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestNamesOfTwoBedsDiffer(t *testing.T) {
	plain, named := names{Config{Dir: "/a"}}, names{Config{Name: "x", Dir: "/b"}}
	if got := plain.netns("alpha"); got != "/run/netns/alpha" {
		t.Errorf("netns = %q", got)
	}
	if plain.netns("alpha") == named.netns("alpha") || plain.cgroup("alpha") == named.cgroup("alpha") {
		t.Error("two beds share a name")
	}
}

func TestAddresses(t *testing.T) {
	for place, want := range map[string]string{"operator": "198.18.0.10", "alpha": "198.18.0.11", "beta": "198.18.0.12", "gamma": "198.18.0.13"} {
		if got := Address(place).String(); got != want {
			t.Errorf("address of %s = %s, want %s", place, got, want)
		}
	}
	if got := Endpoint("beta"); got != "198.18.0.12:7443" {
		t.Errorf("endpoint = %s", got)
	}
	if got := hardwareAddr("alpha").String(); got != "02:72:c6:12:00:0b" {
		t.Errorf("hardware address = %s", got)
	}
}

func TestAgentConfigGivesEveryHostItsOwn(t *testing.T) {
	n := names{Config{Dir: "/bed"}}
	alpha, beta := n.agentConfig("alpha", "/cache"), n.agentConfig("beta", "/cache")
	for _, attribute := range []string{"name", "listen", "state_dir", "run_dir", "cgroup_parent", "first", "path"} {
		a, b := line(alpha, attribute), line(beta, attribute)
		if a == "" || a == b {
			t.Errorf("%s of alpha is %q, of beta %q", attribute, a, b)
		}
	}
}

// line finds an attribute's line.
func line(text, attribute string) string {
	for l := range strings.Lines(text) {
		if f := strings.Fields(l); len(f) > 0 && f[0] == attribute {
			return l
		}
	}
	return ""
}

func TestCommandsQuoteTheirPaths(t *testing.T) {
	n := names{Config{Dir: "/it's a bed"}}
	commands := n.commands("/bin dir/testbed", []string{"A=b c"})
	if want := `exec '/bin dir/testbed' --dir '/it'\''s a bed' cut "$@"`; !strings.Contains(commands["cut"], want) {
		t.Errorf("cut is %q, want %q in it", commands["cut"], want)
	}
	if !strings.Contains(commands["run"], `'A=b c'`) {
		t.Errorf("run is %q", commands["run"])
	}
}

func TestRecipeDecidesTheFile(t *testing.T) {
	other := Debian
	other.Packages = append([]string{"vim"}, other.Packages...)
	if Debian.fileName() == other.fileName() || Debian.fileName() == DebianNext.fileName() {
		t.Error("two recipes have one file")
	}
	if again := Debian; again.fileName() != Debian.fileName() {
		t.Error("one recipe has two files")
	}
}
