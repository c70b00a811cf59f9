package inventory

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Scope says where to look. Take looks at everything from the calling thread's network and
// mount namespace.
type Scope struct {
	// Dirs are directories: mounts, loop devices and files in them are listed. They need not
	// exist.
	Dirs []string
	// Cgroup is the parent of the control groups, below each hierarchy's root, or a pattern
	// of parents' names; processes in a parent's groups are listed.
	Cgroup string
	// Namespaces has processes listed that are in the calling thread's network namespace.
	Namespaces bool
	// AllProcesses has every process of the machine listed.
	AllProcesses bool
	// SkipFiles are names of files that are not listed, in whatever directory: what a program
	// renews by itself.
	SkipFiles []string
}

// Take makes the inventory of a scope, sorted.
func Take(s Scope) (Inventory, error) {
	var all Inventory
	for _, part := range []func() ([]string, error){s.mounts, s.loops, s.groups, s.links, s.rules, filters, s.files, s.processes} {
		lines, err := part()
		if err != nil {
			return nil, fmt.Errorf("take inventory: %w", err)
		}
		all = append(all, lines...)
	}
	slices.Sort(all)
	return all, nil
}

func (s Scope) in(path string) bool {
	return slices.ContainsFunc(s.Dirs, func(dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") })
}

func (s Scope) mounts() (lines []string, err error) {
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		place, kind, _ := strings.Cut(line, " - ")
		p, k := strings.Fields(place), strings.Fields(kind)
		if len(p) >= 5 && len(k) >= 1 && s.in(p[4]) {
			lines = append(lines, "mount "+p[4]+" "+k[0])
		}
	}
	return lines, nil
}

func (s Scope) loops() (lines []string, err error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // detached meanwhile
		}
		if file := strings.TrimSuffix(string(text), "\n"); s.in(strings.TrimSuffix(file, " (deleted)")) {
			lines = append(lines, "loop "+file)
		}
	}
	return lines, nil
}

// groups lists the control groups below the parent, by hierarchy.
func (s Scope) groups() (lines []string, err error) {
	if s.Cgroup == "" {
		return nil, nil
	}
	mounts, err := filepath.Glob("/sys/fs/cgroup/*/" + s.Cgroup)
	if err != nil {
		return nil, err
	}
	for _, root := range append(mounts, filepath.Join("/sys/fs/cgroup", s.Cgroup)) {
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() {
				lines = append(lines, "cgroup "+strings.TrimPrefix(path, "/sys/fs/cgroup/"))
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return lines, nil
}

// links lists network links, their addresses, queueing disciplines and neighbours that
// somebody set.
func (s Scope) links() (lines []string, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, link := range links {
		name := link.Attrs().Name
		lines = append(lines, "link "+name+" "+link.Type())
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", name, err)
		}
		for _, a := range addrs {
			lines = append(lines, "address "+name+" "+a.IPNet.String())
		}
		qdiscs, err := netlink.QdiscList(link)
		if err != nil {
			return nil, fmt.Errorf("list queues of %s: %w", name, err)
		}
		for _, q := range qdiscs {
			lines = append(lines, "queue "+name+" "+q.Type())
		}
	}
	return lines, nil
}

// rules lists routes and routing rules.
func (s Scope) rules() (lines []string, err error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		dst := "default"
		if r.Dst != nil {
			dst = r.Dst.String()
		}
		lines = append(lines, "route "+dst)
	}
	rules, err := netlink.RuleList(netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list routing rules: %w", err)
	}
	for _, r := range rules {
		lines = append(lines, fmt.Sprintf("rule %d table %d", r.Priority, r.Table))
	}
	return lines, nil
}

// filters lists nftables chains with the number of their rules, and sets with that of
// their elements.
func filters() (lines []string, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list nftables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	for _, t := range tables {
		table := fmt.Sprintf("nft %d %s", t.Family, t.Name)
		lines = append(lines, table)
		sets, err := c.GetSets(t)
		if err != nil {
			return nil, fmt.Errorf("list sets: %w", err)
		}
		for _, set := range sets {
			elements, err := c.GetSetElements(set)
			if err != nil {
				return nil, fmt.Errorf("list elements: %w", err)
			}
			lines = append(lines, fmt.Sprintf("%s set %s %d", table, set.Name, len(elements)))
		}
		for _, chain := range chains {
			if chain.Table.Name != t.Name || chain.Table.Family != t.Family {
				continue
			}
			rules, err := c.GetRules(t, chain)
			if err != nil {
				return nil, fmt.Errorf("list rules: %w", err)
			}
			lines = append(lines, fmt.Sprintf("%s chain %s %d", table, chain.Name, len(rules)))
		}
	}
	return lines, nil
}

// files lists the names in the directories, and not what is in other file systems there
// that are servers' own.
func (s Scope) files() (lines []string, err error) {
	for _, dir := range s.Dirs {
		devices, err := ownDevices(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if slices.Contains(s.SkipFiles, d.Name()) {
				return nil
			}
			var st unix.Stat_t
			if d.IsDir() && unix.Lstat(path, &st) == nil && !devices[st.Dev] {
				return filepath.SkipDir
			}
			lines = append(lines, "file "+path)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return lines, nil
}

// ownDevices are the file systems whose names are the agent's: that of dir, and the pool
// (XFS or btrfs) and tmpfs mounted in it.
func ownDevices(dir string) (map[uint64]bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", dir, err)
	}
	devices := map[uint64]bool{st.Dev: true}
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		place, kind, _ := strings.Cut(line, " - ")
		p, k := strings.Fields(place), strings.Fields(kind)
		if len(p) < 5 || len(k) < 1 || !strings.HasPrefix(p[4], dir+"/") {
			continue
		}
		if !slices.Contains([]string{"xfs", "btrfs", "tmpfs"}, k[0]) {
			continue
		}
		if err := unix.Stat(p[4], &st); err == nil {
			devices[st.Dev] = true
		}
	}
	return devices, nil
}

// processes lists the processes of the namespaces and control groups by their command line.
func (s Scope) processes() (lines []string, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	own, _ := os.Readlink("/proc/thread-self/ns/net")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		netns, _ := os.Readlink("/proc/" + e.Name() + "/ns/net")
		if !s.AllProcesses && !s.inGroup(e.Name()) && !(s.Namespaces && netns != "" && netns == own) {
			continue
		}
		argv, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil || len(argv) == 0 {
			continue // ended meanwhile, or a zombie
		}
		lines = append(lines, "process "+strings.ReplaceAll(strings.TrimRight(string(argv), "\x00"), "\x00", " "))
	}
	return lines, nil
}

func (s Scope) inGroup(pid string) bool {
	if s.Cgroup == "" {
		return false
	}
	text, err := os.ReadFile("/proc/" + pid + "/cgroup")
	return err == nil && (strings.Contains(string(text), ":/"+s.Cgroup+"/") || strings.Contains(string(text), ":/"+s.Cgroup+"\n"))
}
