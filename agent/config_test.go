package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/hashicorp/hcl/v2"
)

const examplePath = "../examples/agent/agent.hcl"

// The example names every attribute that there is, and what it calls a default is one.
func TestExampleIsCompleteAndTrue(t *testing.T) {
	t.Parallel()
	config, err := LoadConfig(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	file, diags := hclsyntax.ParseConfig(text, examplePath, hcl.InitialPos)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	set := map[string]bool{}
	body := file.Body.(*hclsyntax.Body)
	for name := range body.Attributes {
		set[name] = true
	}
	for _, b := range body.Blocks {
		for name := range b.Body.Attributes {
			set[b.Type+"."+name] = true
		}
		if len(b.Labels) > 0 { // it is called name or bucket, after what it is of
			set[b.Type+".name"], set[b.Type+".bucket"] = true, true
		}
	}
	for _, name := range attributes(reflect.TypeFor[Config](), "") {
		if !set[name] {
			t.Errorf("%s does not show %s", examplePath, name)
		}
	}
	// What the example has of its own; all else must be the default.
	own := Defaults()
	own.Name, own.UnderlayAddress = "alpha", "198.18.0.11"
	own.ImageDirs, own.InsecureRegistries = []string{"/var/lib/reflejo/images"}, []string{"registry.test:5000"}
	own.Pool.Path, own.Pool.Size = "/var/lib/reflejo/pool", "200GiB"
	own.Backup = &BackupConfig{Dirs: []string{"/var/backups/reflejo"}, Store: "/var/lib/reflejo/backups"}
	own.Endpoint.Address = "198.18.0.11:7444"
	own.Hosts = []HostConfig{{Name: "beta", Endpoint: "198.18.0.12:7444"}}
	own.S3 = []S3Config{{Bucket: "backups", Endpoint: "https://s3.example.org", Region: "us-east-1", AccessKeyFile: "/etc/reflejo/s3-access", SecretKeyFile: "/etc/reflejo/s3-secret"}}
	own.Network.Uplink, own.Network.Ingress, own.Network.Egress = "eth0", "10gbit", "10gbit"
	if !reflect.DeepEqual(config, own) {
		t.Errorf("the example is %s\nwant %s", show(config), show(own))
	}
}

func show(c Config) string {
	return fmt.Sprintf("%+v %+v %+v %+v %+v %+v %+v %+v %+v %+v %+v", c, *c.TLS, *c.Log, *c.Pool, *c.Reserve, *c.Overcommit, *c.Network, *c.IDRange, *c.Runtime, *c.Endpoint, *c.Backup)
}

// attributes are the HCL names of a configuration's attributes, "pool.size".
func attributes(t reflect.Type, prefix string) (all []string) {
	for i := range t.NumField() {
		name, kind, _ := strings.Cut(t.Field(i).Tag.Get("hcl"), ",")
		if kind == "block" {
			all = append(all, attributes(t.Field(i).Type.Elem(), name+".")...)
		} else {
			all = append(all, prefix+name)
		}
	}
	return all
}

// Every attribute has a wrong value, and the error names file, line and attribute.
func TestWrongConfigurations(t *testing.T) {
	t.Parallel()
	wrong := map[string]string{
		"name":                  `name = "Not a name"`,
		"listen":                `listen = "7443"`,
		"underlay_address":      `underlay_address = "::1"`,
		"state_dir":             `state_dir = ""`,
		"run_dir":               `run_dir = ""`,
		"image_dirs":            `image_dirs = [""]`,
		"cgroup_parent":         `cgroup_parent = "a/b"`,
		"insecure_registries":   `insecure_registries = ["http://registry"]`,
		"tls.ca_file":           "tls {\nca_file = \"\"\n}",
		"tls.cert_file":         "tls {\ncert_file = \"\"\n}",
		"tls.key_file":          "tls {\nkey_file = \"\"\n}",
		"log.level":             "log {\nlevel = \"loud\"\n}",
		"log.json":              "log {\njson = \"perhaps\"\n}",
		"pool.path":             "pool {\npath = [\"a\"]\n}",
		"pool.size":             "pool {\nsize = \"10 GB\"\n}",
		"reserve.cpu":           "reserve {\ncpu = \"1GiB\"\n}",
		"reserve.memory":        "reserve {\nmemory = \"110%\"\n}",
		"reserve.disk":          "reserve {\ndisk = \"-1\"\n}",
		"overcommit.cpu":        "overcommit {\ncpu = \"0\"\n}",
		"network.uplink":        "network {\nuplink = \"a-very-long-interface\"\n}",
		"network.ingress":       "network {\ningress = \"10GiB\"\n}",
		"network.egress":        "network {\negress = \"fast\"\n}",
		"network.default_cidr":  "network {\ndefault_cidr = \"10.90.0.1/16\"\n}",
		"id_range.first":        "id_range {\nfirst = 0\n}",
		"id_range.count":        "id_range {\ncount = 4294967296\n}",
		"runtime.runc":          "runtime {\nrunc = \"\"\n}",
		"runtime.lxcfs":         "runtime {\nlxcfs = {}\n}",
		"endpoint.listen":       "endpoint {\nlisten = \"7444\"\n}",
		"endpoint.address":      "endpoint {\naddress = \"here\"\n}",
		"backup.dirs":           "backup {\ndirs = [\"/\"]\n}",
		"backup.store":          "backup {\nstore = \"/\"\n}",
		"host.name":             "host \"Not a name\" {\nendpoint = \"b:7444\"\n}",
		"host.endpoint":         "host \"beta\" {\nendpoint = \"beta\"\n}",
		"s3.bucket":             "s3 \"\" {\nendpoint = \"https://s3\"\naccess_key_file = \"a\"\nsecret_key_file = \"b\"\n}",
		"s3.endpoint":           "s3 \"b\" {\nendpoint = \"s3.test\"\naccess_key_file = \"a\"\nsecret_key_file = \"b\"\n}",
		"s3.region":             "s3 \"b\" {\nendpoint = \"https://s3\"\nregion = [1]\naccess_key_file = \"a\"\nsecret_key_file = \"b\"\n}",
		"s3.access_key_file":    "s3 \"b\" {\nendpoint = \"https://s3\"\naccess_key_file = \"\"\nsecret_key_file = \"b\"\n}",
		"s3.secret_key_file":    "s3 \"b\" {\nendpoint = \"https://s3\"\naccess_key_file = \"a\"\nsecret_key_file = \"\"\n}",
		"s3.path_style":         "s3 \"b\" {\nendpoint = \"https://s3\"\npath_style = \"perhaps\"\naccess_key_file = \"a\"\nsecret_key_file = \"b\"\n}",
		"a host twice":          "host \"beta\" {\nendpoint = \"b:7444\"\n}\nhost \"beta\" {\nendpoint = \"b:7444\"\n}",
		"unknown attribute":     `colour = "red"`,
		"unknown in block":      "pool {\ncolour = \"red\"\n}",
		"unknown block":         "colour {\n}",
		"two blocks of a kind":  "pool {\n}\npool {\n}",
		"not HCL":               `name = `,
		"function call":         `name = upper("x")`,
		"variable use":          `name = host`,
		"wrong type of listen.": `listen = ["a"]`,
	}
	for _, name := range attributes(reflect.TypeFor[Config](), "") {
		if _, ok := wrong[name]; !ok {
			t.Errorf("%s: no wrong value in this test", name)
		}
	}
	for name, text := range wrong {
		_, err := ParseConfig([]byte("\n\n"+text), "agent.hcl")
		last := name[strings.LastIndex(name, ".")+1:]
		if err == nil || !strings.Contains(err.Error(), "agent.hcl:") {
			t.Errorf("%s: got %v, want an error with file and line", name, err)
		} else if !strings.Contains(name, " ") && !strings.Contains(err.Error(), last) && !strings.Contains(err.Error(), "id_range") {
			t.Errorf("%s: the error does not name it: %v", name, err)
		}
	}
	_, err := ParseConfig([]byte("\n\npool {\n  size = \"1 GB\"\n}"), "agent.hcl")
	if want := `agent.hcl:4: pool.size: "1 GB" is not a size`; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

func TestPathsAreRelativeToTheFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.hcl")
	text := "name = \"a\"\nstate_dir = \"state\"\nimage_dirs = [\"images\", \"/abs\"]\ntls {\n  ca_file = \"pki/ca.crt\"\n}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		c.StateDir: "state", c.Pool.Path: "state/pool", c.ImageDirs[0]: "images", c.TLS.CAFile: "pki/ca.crt",
	} {
		if got != filepath.Join(dir, filepath.FromSlash(want)) {
			t.Errorf("got %s, want %s in %s", got, want, dir)
		}
	}
	if c.TLS.KeyFile != Defaults().TLS.KeyFile || c.ImageDirs[1] != "/abs" || c.RunDir != "/run/reflejo" {
		t.Errorf("absolute paths changed: %s", show(c))
	}
	if _, err := LoadConfig(filepath.Join(dir, "nothing.hcl")); err == nil {
		t.Error("a file that is not there was read")
	}
}

func TestAmounts(t *testing.T) {
	t.Parallel()
	c := Defaults()
	c.Reserve = &ReserveConfig{CPU: "25%", Memory: "12.5%", Disk: "10GiB"}
	c.Overcommit.CPU = "1.5"
	cpu, err1 := c.Reserve.MilliCores(8000)
	memory, err2 := c.Reserve.MemoryBytes(64 << 40)
	disk, err3 := c.Reserve.DiskBytes(1 << 40)
	factor, err4 := c.Overcommit.CPUFactor()
	if cpu != 2000 || memory != 8<<40 || disk != 10<<30 || factor != 1500 {
		t.Errorf("got %d, %d, %d, %d: %v %v %v %v", cpu, memory, disk, factor, err1, err2, err3, err4)
	}
}
