package image

import (
	"net"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

const (
	schemeOCI  = "oci://"
	schemeHost = "host:"
)

// source is a parsed source: a registry's reference or a path.
type source struct {
	ref   name.Reference // nil for a path
	plain bool           // the registry may be spoken to without TLS
	path  string
}

// parseSource reads a source as asked. Errors are fault.Invalid and blame "source".
func parseSource(s string, insecure []string) (source, error) {
	switch {
	case s == "" || len(s) > maxSource:
		return source{}, fault.Field("source", "image source: want 1 … %d bytes", maxSource)
	case strings.HasPrefix(s, schemeOCI):
		return parseOCI(s, insecure)
	case strings.HasPrefix(s, schemeHost):
		p := strings.TrimPrefix(s, schemeHost)
		if !path.IsAbs(p) || path.Clean(p) != strings.TrimRight(p, "/") || strings.ContainsRune(p, 0) {
			return source{}, fault.Field("source", "image source %q: want host: and an absolute path without . and ..", s)
		}
		return source{path: path.Clean(p)}, nil
	}
	return source{}, fault.Field("source", "image source %q: want oci://registry/name:tag, or host:/path of a tar, OCI layout or directory on the host", s)
}

func parseOCI(s string, insecure []string) (source, error) {
	rest := strings.TrimPrefix(s, schemeOCI)
	host, _, ok := strings.Cut(rest, "/")
	// Without this, a word in front of the first slash would silently mean a folder at Docker's registry.
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return source{}, fault.Field("source", "image source %q: want the registry's host name first, like oci://docker.io/library/debian:12 (a name without a dot needs a port: oci://registry:443/…)", s)
	}
	plain := isLoopback(host) || slices.Contains(insecure, host)
	var opts []name.Option
	if plain {
		opts = append(opts, name.Insecure)
	}
	ref, err := name.ParseReference(rest, opts...)
	if err != nil {
		return source{}, fault.Field("source", "image source %q: %w", s, err)
	}
	return source{ref: ref, plain: plain}, nil
}

// isLoopback reports whether host, maybe with a port, is this machine by its name or address alone.
func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// allowedDir is the directory of dirs that p is in (or is), the deepest if several, and p relative to it.
func allowedDir(dirs []string, p string) (dir, rel string, err error) {
	for _, d := range dirs {
		d = filepath.Clean(d)
		r, err := filepath.Rel(d, p)
		if err == nil && r != ".." && !strings.HasPrefix(r, "../") && len(d) > len(dir) {
			dir, rel = d, r
		}
	}
	if dir == "" {
		if len(dirs) == 0 {
			return "", "", fault.Field("source", "image source host:%s: this host allows none: its agent.hcl names no image_dirs", p)
		}
		return "", "", fault.Field("source", "image source host:%s: want a path below one of the host's image_dirs: %s", p, strings.Join(dirs, ", "))
	}
	return dir, rel, nil
}
