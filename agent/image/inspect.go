package image

import (
	"encoding/binary"
	"io"
	"path"
	"slices"
	"strings"
	"unicode"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// facts are what an unpacked root file system tells about itself.
type facts struct {
	os           string // PRETTY_NAME
	init         bool   // has an executable /sbin/init
	architecture string // of its programs, "" if unknown
}

func inspect(t tree) facts {
	f := facts{}
	_, f.init = readTree(t, "sbin/init", 0)
	for _, p := range []string{"etc/os-release", "usr/lib/os-release"} {
		if b, _ := readTree(t, p, 64<<10); b != nil {
			f.os = prettyName(string(b))
			break
		}
	}
	for _, p := range []string{"sbin/init", "bin/sh", "usr/bin/env", "bin/bash", "bin/busybox"} {
		if b, _ := readTree(t, p, 20); b != nil {
			if f.architecture = elfArchitecture(b); f.architecture != "" {
				break
			}
		}
	}
	return f
}

// readTree reads the first limit bytes of a file, nil if it cannot be read.
func readTree(t tree, p string, limit int64) (content []byte, executable bool) {
	r, executable, err := t.Open(p)
	if err != nil {
		return nil, false
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit))
	if err != nil {
		return nil, executable
	}
	return b, executable
}

// prettyName finds PRETTY_NAME in the text of an os-release file (os-release(5)): shell quoting, no
// expansion. Control characters are left out and the length is bounded: it will be printed.
func prettyName(text string) string {
	for line := range strings.SplitSeq(text, "\n") {
		v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME=")
		if !ok {
			continue
		}
		var b strings.Builder
		var quote rune
		escaped := false
		for _, c := range v {
			switch {
			case b.Len() >= 256:
			case escaped:
				b.WriteRune(c)
				escaped = false
			case c == '\\' && quote != '\'':
				escaped = true
			case quote == 0 && (c == '"' || c == '\''):
				quote = c
			case c == quote:
				quote = 0
			case unicode.IsPrint(c):
				b.WriteRune(c)
			}
		}
		return strings.TrimSpace(b.String())
	}
	return ""
}

// elfArchitecture is the architecture, as Go names it, of the program that begins with head.
func elfArchitecture(head []byte) string {
	if len(head) < 20 || string(head[:4]) != "\x7fELF" {
		return ""
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if head[5] == 2 {
		order = binary.BigEndian
	}
	switch machine, little := order.Uint16(head[18:]), head[5] == 1; {
	case machine == 62:
		return "amd64"
	case machine == 3:
		return "386"
	case machine == 183 && little:
		return "arm64"
	case machine == 40 && little:
		return "arm"
	case machine == 243:
		return "riscv64"
	case machine == 258:
		return "loong64"
	case machine == 22:
		return "s390x"
	case machine == 21 && little:
		return "ppc64le"
	case machine == 21:
		return "ppc64"
	}
	return ""
}

// runsOn reports whether a host of the architecture can run programs of image's; unknown ones are tried.
func runsOn(host, image string) bool {
	switch {
	case image == "" || image == host:
		return true
	case host == "amd64":
		return image == "386"
	case host == "arm64":
		return image == "arm"
	}
	return false
}

// bootCommand is the program to start as the server's first, nil for the system's own init (or ours,
// where it has none). An image that only names a shell means "nothing in particular": a shell without
// a terminal would end at once, and with an init in the image that is what was meant.
func bootCommand(hasInit bool, entrypoint, cmd []string) []string {
	argv := slices.Concat(entrypoint, cmd)
	switch {
	case len(argv) == 0, len(entrypoint) == 0 && onlyShell(cmd), onlyShell(argv):
		return nil
	case hasInit && len(argv) == 1 && (argv[0] == "/sbin/init" || argv[0] == "/usr/sbin/init"):
		return nil
	}
	return argv
}

func onlyShell(argv []string) bool {
	if len(argv) == 0 || !slices.Contains([]string{"sh", "bash", "ash", "dash", "zsh", "fish", "ksh"}, path.Base(argv[0])) {
		return false
	}
	return !slices.ContainsFunc(argv[1:], func(a string) bool { return a != "-l" && a != "-i" && a != "-" && a != "--login" })
}

// checkConfig bounds what an OCI config says about the first program.
func checkConfig(c v1.Config) error {
	total := len(c.WorkingDir)
	for _, s := range slices.Concat(c.Entrypoint, c.Cmd, c.Env) {
		if strings.ContainsRune(s, 0) {
			return fault.New(fault.Invalid, "read image config: a NUL in its environment or entry point")
		}
		total += len(s) + 1
	}
	if total > maxEnv {
		return fault.New(fault.Invalid, "read image config: environment and entry point are %d bytes, at most %d", total, maxEnv)
	}
	for _, e := range c.Env {
		if k, _, ok := strings.Cut(e, "="); !ok || k == "" {
			return fault.New(fault.Invalid, "read image config: environment %q: want NAME=value", e)
		}
	}
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) || strings.ContainsRune(c.WorkingDir, 0) {
		return fault.New(fault.Invalid, "read image config: working directory %q is not absolute", c.WorkingDir)
	}
	return nil
}
