package disk

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// mount is one line of /proc/self/mountinfo.
type mount struct {
	ID     uint64
	Major  uint32
	Minor  uint32
	Root   string // directory of the file system that is mounted
	Point  string
	Shared bool // what is mounted below is mounted in other namespaces too
	Type   string
}

// parseMounts reads a mountinfo file, in order of mounting.
func parseMounts(r io.Reader) ([]mount, error) {
	var all []mount
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20) // overlay options can be long
	for s.Scan() {
		m, err := parseMount(s.Text())
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, s.Err()
}

// parseMount reads one line: id parent major:minor root point options [tags…] - type source options.
func parseMount(line string) (mount, error) {
	f := strings.Split(line, " ")
	if len(f) < 10 {
		return mount{}, fmt.Errorf("read mountinfo line %q: too few fields", line)
	}
	id, err := strconv.ParseUint(f[0], 10, 64)
	if err != nil {
		return mount{}, fmt.Errorf("read mountinfo line %q: %w", line, err)
	}
	m := mount{ID: id, Root: unescape(f[3]), Point: unescape(f[4])}
	if _, err := fmt.Sscanf(f[2], "%d:%d", &m.Major, &m.Minor); err != nil {
		return mount{}, fmt.Errorf("read mountinfo line %q: %w", line, err)
	}
	for i, tag := range f[6:] {
		if tag == "-" {
			if len(f) > 6+i+1 {
				m.Type = f[6+i+1]
			}
			break
		}
		m.Shared = m.Shared || strings.HasPrefix(tag, "shared:")
	}
	return m, nil
}

// unescape undoes the kernel's octal escapes (\040 for a space).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
