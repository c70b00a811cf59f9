package image

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

func TestPrettyName(t *testing.T) {
	for in, want := range map[string]string{
		"NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n": "Debian GNU/Linux 12 (bookworm)",
		"PRETTY_NAME='Alpine Linux v3.20'":                                    "Alpine Linux v3.20",
		"PRETTY_NAME=Plain":                                                   "Plain",
		"  PRETTY_NAME=\"a \\\"b\\\" \\$c\" ":                                 `a "b" $c`,
		"PRETTY_NAME=\"bad\x1b[31mred\x07\"":                                  "bad[31mred",
		"PRETTY_NAME=":                                                        "",
		"":                                                                    "",
		"NOT_PRETTY_NAME=x":                                                   "",
	} {
		if got := prettyName(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := prettyName("PRETTY_NAME=" + strings.Repeat("x", 10000)); len(got) > 260 {
		t.Errorf("%d bytes", len(got))
	}
}

func TestBootCommand(t *testing.T) {
	for _, c := range []struct {
		init            bool
		entrypoint, cmd string
		want            string
	}{
		{true, "", "", ""},
		{true, "", "bash", ""},
		{true, "", "/bin/sh", ""},
		{true, "", "/bin/bash -l", ""},
		{true, "", "/sbin/init", ""},
		{true, "", "nginx -g x", "nginx -g x"},
		{true, "/docker-entrypoint.sh", "postgres", "/docker-entrypoint.sh postgres"},
		{true, "", "/bin/sh -c run", "/bin/sh -c run"},
		{false, "", "", ""},
		{false, "", "/bin/sh", ""},
		{false, "/bin/sh", "", ""},
		{false, "", "/app", "/app"},
		{false, "/app", "serve", "/app serve"},
		{false, "/bin/sh -c", "run", "/bin/sh -c run"},
	} {
		if got := strings.Join(bootCommand(c.init, strings.Fields(c.entrypoint), strings.Fields(c.cmd)), " "); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func TestElfArchitecture(t *testing.T) {
	elf := func(data byte, machine uint16) []byte {
		b := append([]byte("\x7fELF\x02"), data)
		b = append(b, make([]byte, 14)...)
		order := binary.ByteOrder(binary.LittleEndian)
		if data == 2 {
			order = binary.BigEndian
		}
		order.PutUint16(b[18:], machine)
		return b
	}
	for want, in := range map[string][]byte{
		"amd64": elf(1, 62), "386": elf(1, 3), "arm64": elf(1, 183), "arm": elf(1, 40), "riscv64": elf(1, 243),
		"s390x": elf(2, 22), "ppc64": elf(2, 21), "ppc64le": elf(1, 21), "loong64": elf(1, 258),
	} {
		if got := elfArchitecture(in); got != want {
			t.Errorf("%s: %q", want, got)
		}
	}
	for _, in := range [][]byte{nil, []byte("#!/bin/sh\n..........."), elf(1, 9999), elf(1, 62)[:19]} {
		if got := elfArchitecture(in); got != "" {
			t.Errorf("%q: %q", in, got)
		}
	}
	if !runsOn("amd64", "386") || !runsOn("arm64", "arm") || !runsOn("amd64", "") || runsOn("amd64", "arm64") || runsOn("386", "amd64") {
		t.Error("runsOn")
	}
}

func TestCheckConfig(t *testing.T) {
	good := v1.Config{Env: []string{"PATH=/bin", "EMPTY="}, Entrypoint: []string{"/app"}, WorkingDir: "/srv"}
	if err := checkConfig(good); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]v1.Config{
		"NUL":           {Cmd: []string{"a\x00b"}},
		"no equal sign": {Env: []string{"PATH"}},
		"no name":       {Env: []string{"=x"}},
		"relative":      {WorkingDir: "srv"},
		"huge":          {Env: []string{"A=" + strings.Repeat("x", maxEnv)}},
		"many":          {Cmd: slices.Repeat([]string{""}, maxEnv+1)},
	} {
		if err := checkConfig(c); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPlatformRank(t *testing.T) {
	p := func(s string) *v1.Platform {
		got, err := v1.ParsePlatform(s)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, c := range []struct {
		arch, better, worse string
	}{
		{"amd64", "linux/amd64", "linux/amd64/v3"},
		{"arm", "linux/arm/v7", "linux/arm/v6"},
		{"arm64", "linux/arm64/v8", "linux/arm64/v9"},
		{"riscv64", "linux/riscv64", "linux/amd64"},
		{"amd64", "linux/amd64", "windows/amd64"},
		{"amd64", "linux/amd64", "unknown/unknown"},
	} {
		if platformRank(p(c.better), c.arch) <= platformRank(p(c.worse), c.arch) {
			t.Errorf("%s: %s is not better than %s", c.arch, c.better, c.worse)
		}
	}
	if platformRank(nil, "amd64") == 0 {
		t.Error("an unnamed platform is not tried")
	}
}
