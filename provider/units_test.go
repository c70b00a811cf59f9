package provider

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/network"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

func mustRange(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// The provider shows defaults at plan time, so it must know the agent's.
func TestDefaultsAreTheAgents(t *testing.T) {
	t.Parallel()
	got := [...]int64{defaultMilliCores, defaultWeight, defaultMemory, defaultDisk, defaultProcesses, defaultShutdown}
	want := [...]int64{vserver.DefaultMilliCores, vserver.DefaultWeight, vserver.DefaultMemory, vserver.DefaultDisk, vserver.DefaultProcesses, int64(vserver.DefaultShutdownTimeout)}
	if got != want {
		t.Errorf("the provider's defaults are %v, the agent's %v", got, want)
	}
	for _, cidr := range []string{"10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/24", "10.0.0.0/25", "10.0.0.0/27", "10.0.0.0/28"} {
		if limit, _ := hostLimit(cidr); limit != network.Shares(mustRange(cidr)) {
			t.Errorf("%s has room for %d hosts, the agent says %d", cidr, limit, network.Shares(mustRange(cidr)))
		}
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	known := func(pairs ...any) (list []*reflejov1.NetworkMember) {
		for i := 0; i < len(pairs); i += 2 {
			list = append(list, &reflejov1.NetworkMember{Host: pairs[i].(string), Slot: uint32(pairs[i+1].(int))})
		}
		return list
	}
	for name, c := range map[string]struct {
		hosts []string
		known []*reflejov1.NetworkMember
		limit int
		want  string
	}{
		"new":                  {[]string{"beta", "alpha"}, nil, 8, "alpha beta"},
		"added at the end":     {[]string{"alpha", "beta", "gamma"}, known("beta", 0, "gamma", 1), 8, "beta gamma alpha"},
		"removed":              {[]string{"alpha", "gamma"}, known("alpha", 0, "beta", 1, "gamma", 2), 8, "alpha - gamma"},
		"place of a left host": {[]string{"alpha", "delta", "gamma"}, known("alpha", 0, "beta", 1, "gamma", 2), 3, "alpha delta gamma"},
		"not at once reused":   {[]string{"alpha", "delta", "gamma"}, known("alpha", 0, "beta", 1, "gamma", 2), 8, "alpha - gamma delta"},
		"too many":             {[]string{"alpha", "beta", "gamma"}, nil, 2, "error"},
	} {
		places, err := members(c.hosts, map[string]string{"alpha": "192.0.2.1"}, c.known, c.limit)
		got := "error"
		if err == nil {
			var words []string
			for _, m := range places {
				for len(words) < int(m.GetSlot()) {
					words = append(words, "-")
				}
				words = append(words, m.GetHost())
			}
			got = strings.Join(words, " ")
		} else if !fault.Is(err, fault.Exhausted) || fault.FieldOf(err) != "hosts" {
			t.Errorf("%s: %v", name, err)
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestRank(t *testing.T) {
	t.Parallel()
	whole := room{milliCores: 10_000, memory: 100, disk: 1000}
	at := func(name string, cores, memory, servers int64) candidate {
		return candidate{name: name, free: room{milliCores: cores, memory: memory, disk: 1000}, capacity: whole, servers: servers}
	}
	refused := at("d", 10_000, 100, 0)
	refused.reason = "it has no image"
	for name, c := range map[string]struct {
		in   []candidate
		want string
	}{
		"most room":           {[]candidate{at("a", 5000, 50, 0), at("b", 9000, 90, 9), at("c", 7000, 70, 0)}, "b c a"},
		"scarcest counts":     {[]candidate{at("a", 10_000, 20, 0), at("b", 4000, 40, 0)}, "b a"},
		"then fewer servers":  {[]candidate{at("a", 5000, 50, 2), at("b", 5000, 50, 1)}, "b a"},
		"then the name":       {[]candidate{at("b", 5000, 50, 1), at("a", 5000, 50, 1)}, "a b"},
		"only those that can": {[]candidate{refused, at("a", 1000, 10, 1)}, "a"},
	} {
		var names []string
		for _, one := range rank(room{milliCores: 1000, memory: 10, disk: 10}, c.in) {
			names = append(names, one.name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
}

func TestShortages(t *testing.T) {
	t.Parallel()
	capacity := room{milliCores: 4000, memory: 8 << 30, disk: 100 << 30}
	have := room{milliCores: 500, memory: 1 << 30, disk: -5}
	short := shortages(room{milliCores: 1500, memory: 1 << 30, disk: 1 << 30, ingress: 1e9}, have, capacity)
	var got []string
	for _, s := range short {
		got = append(got, s.field+" "+s.String())
	}
	want := []string{"cpu.cores CPU: asked for 1.5 cores, 0.5 cores free", "disk.size disk: asked for 1GiB, 0 free"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	capacity.ingress = 1e9
	if short := shortages(room{ingress: 2e9}, room{ingress: 1e9}, capacity); len(short) != 1 || short[0].field != "network" {
		t.Errorf("bandwidth: %v", short)
	}
}

func TestFieldPath(t *testing.T) {
	t.Parallel()
	for field, want := range map[string]string{
		"name":                               "name",
		"memory.max":                         "memory.max",
		"on_destroy.shutdown_timeout":        "on_destroy.shutdown_timeout",
		"network.eth0.network":               `network["eth0"].network`,
		"network.eth0.publish.web.host_port": `network["eth0"].publish["web"].host_port`,
		"network.eth0.publish.allow.port":    `network["eth0"].publish["allow"].port`,
		"network.eth0.allow.1.from":          `network["eth0"].allow[1].from`,
		"network.network.address":            `network["network"].address`,
		"dns.servers":                        "dns.servers",
		"timeout":                            "",
		"spec.something":                     "",
	} {
		p, ok := fieldPath(field)
		if ok != (want != "") || (ok && p.String() != want) {
			t.Errorf("%s: got %s, %v; want %s", field, p, ok, want)
		}
	}
}

func TestQuantity(t *testing.T) {
	t.Parallel()
	q := func(m measure, s string) quantity { return quantity{StringValue: types.StringValue(s), measure: m} }
	for _, c := range []struct {
		a, b quantity
		same bool
	}{
		{q(bytesMeasure, "2GiB"), q(bytesMeasure, "2048MiB"), true},
		{q(bytesMeasure, "2GiB"), q(bytesMeasure, "2GB"), false},
		{q(bytesMeasure, "nonsense"), q(bytesMeasure, "nonsense"), false},
		{q(byterateMeasure, "1MiB"), q(byterateMeasure, "1MiB/s"), true},
		{q(bitrateMeasure, "1gbit"), q(bitrateMeasure, "1000mbit"), true},
		{q(durationMeasure, "90s"), q(durationMeasure, "1m30s"), true},
		{q(bytesMeasure, "0"), nullQuantity(bytesMeasure), false},
		{q(bytesMeasure, "1"), q(byterateMeasure, "1"), false},
	} {
		if same, diags := c.a.StringSemanticEquals(t.Context(), c.b); same != c.same || diags.HasError() {
			t.Errorf("%s and %s: same = %v", c.a, c.b, same)
		}
	}
}

func TestTarDirectoryIsTheSameEverywhere(t *testing.T) {
	t.Parallel()
	make := func(at time.Time) string {
		dir := t.TempDir()
		for name, mode := range map[string]os.FileMode{"etc/hostname": 0o644, "bin/run": 0o755, "a": 0o600} {
			file := filepath.Join(dir, filepath.FromSlash(name))
			must(t, os.MkdirAll(filepath.Dir(file), 0o755))
			must(t, os.WriteFile(file, []byte(name), mode))
			must(t, os.Chtimes(file, at, at))
		}
		must(t, os.Symlink("run", filepath.Join(dir, "bin", "start")))
		return dir
	}
	var first bytes.Buffer
	must(t, tarDirectory(&first, make(time.Now())))
	var second bytes.Buffer
	must(t, tarDirectory(&second, make(time.Now().Add(-time.Hour))))
	if sha256.Sum256(first.Bytes()) != sha256.Sum256(second.Bytes()) {
		t.Error("the same content gives different archives")
	}
	var names []string
	archive := tar.NewReader(&first)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		names = append(names, header.Name+" "+header.Linkname)
	}
	if got := strings.Join(names, ","); got != "a ,bin/ ,bin/run ,bin/start run,etc/ ,etc/hostname " {
		t.Errorf("archive has %s", got)
	}
}

func TestConfigFromEnvironment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hosts["alpha"] = &testHost{name: "alpha", address: "192.0.2.1:7443"}
	base := providerConfig{Hosts: types.MapNull(types.ObjectType{}), CAFile: types.StringNull(), CAPEM: types.StringNull(), CertFile: types.StringNull(),
		CertPEM: types.StringNull(), KeyFile: types.StringNull(), KeyPEM: types.StringNull()}
	h, diags := base.hosts(t.Context(), w.env)
	if diags.HasError() || len(h.byName) != 1 || h.byName["alpha"].Address() != "192.0.2.1:7443" {
		t.Errorf("hosts %v, %v", h, diags)
	}
	without := func(name, value string) func(string) string {
		return func(asked string) string {
			if asked == name {
				return value
			}
			return w.env(asked)
		}
	}
	for _, c := range []struct{ variable, value, want string }{
		{"REFLEJO_HOSTS", "", "REFLEJO_HOSTS"},
		{"REFLEJO_HOSTS", "alpha", "name=address"},
		{"REFLEJO_CA_FILE", "", "REFLEJO_CA_FILE"},
		{"REFLEJO_CERT_FILE", filepath.Join(w.dir, "none"), "none"},
		{"REFLEJO_KEY_FILE", w.files["ca"], "don't go together"},
	} {
		_, diags := base.hosts(t.Context(), without(c.variable, c.value))
		if !diags.HasError() || !strings.Contains(diags.Errors()[0].Detail(), c.want) {
			t.Errorf("%s = %q: %v", c.variable, c.value, diags)
		}
	}
	unknown := base
	unknown.CertFile = types.StringUnknown()
	h, diags = unknown.hosts(t.Context(), w.env)
	if diags.HasError() {
		t.Fatalf("unknown values: %v", diags)
	}
	if _, err := h.get("alpha"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "cert_file") {
		t.Errorf("with unknown values: %v", err)
	}
}
