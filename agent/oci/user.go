package oci

import (
	"bufio"
	"bytes"
	"math"
	"strconv"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// account is who a command runs as.
type account struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
	Name     string   // "" where passwd has no such uid
	Home     string
	Shell    string
}

// maxGroups is the kernel's limit of supplementary groups that we are willing to set.
const maxGroups = 1024

// resolveUser finds user ("", "uid", "uid:gid" or a name) in the contents of the server's
// passwd and group files. A uid need not be in them, a name must: fault.Invalid.
func resolveUser(passwd, group []byte, user string) (account, error) {
	if user == "" {
		user = "0"
	}
	name, gid, explicit := strings.Cut(user, ":")
	a := account{Home: "/"}
	uid, err := strconv.ParseUint(name, 10, 32)
	numeric := err == nil
	if numeric && uid == math.MaxUint32 {
		return a, fault.Field("user", "resolve user %q: not an id", user)
	}
	if numeric {
		a.UID = uint32(uid)
	}
	entry := findAccount(passwd, func(e account) bool { return (numeric && e.UID == a.UID) || (!numeric && e.Name == name) })
	switch {
	case entry != nil:
		a = *entry
	case !numeric:
		return a, fault.Field("user", "resolve user %q: the server has no such user", user)
	}
	if explicit {
		g, err := strconv.ParseUint(gid, 10, 32)
		if err != nil || g == math.MaxUint32 {
			return a, fault.Field("user", "resolve user %q: the part after the colon is not a group id", user)
		}
		a.GID = uint32(g)
		return a, nil
	}
	a.Groups = groupsOf(group, a)
	return a, nil
}

// findAccount is the first entry of passwd that match accepts.
func findAccount(passwd []byte, match func(account) bool) *account {
	for s := bufio.NewScanner(bytes.NewReader(passwd)); s.Scan(); {
		f := strings.Split(s.Text(), ":")
		if len(f) < 7 {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		a := account{Name: f[0], UID: uint32(uid), GID: uint32(gid), Home: f[5], Shell: f[6]}
		if !strings.HasPrefix(a.Home, "/") {
			a.Home = "/"
		}
		if match(a) {
			return &a
		}
	}
	return nil
}

// groupsOf are the groups that name a as a member.
func groupsOf(group []byte, a account) []uint32 {
	var out []uint32
	if a.Name == "" {
		return nil
	}
	for s := bufio.NewScanner(bytes.NewReader(group)); s.Scan() && len(out) < maxGroups; {
		f := strings.Split(s.Text(), ":")
		if len(f) < 4 {
			continue
		}
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil || uint32(gid) == a.GID {
			continue
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if member == a.Name {
				out = append(out, uint32(gid))
				break
			}
		}
	}
	return out
}

// commandEnv is the environment of a command: who it runs as, then what the caller set.
func commandEnv(a account, tty bool, more []string) []string {
	env := append([]string(nil), more...)
	add := func(name, value string) {
		if value != "" && !hasEnv(env, name) {
			env = append(env, name+"="+value)
		}
	}
	add("PATH", defaultPath)
	add("HOME", a.Home)
	add("USER", a.Name)
	add("LOGNAME", a.Name)
	add("SHELL", a.Shell)
	if tty {
		add("TERM", "xterm-256color")
	}
	add("container", "oci")
	return env
}

// mappedID finds an id in the text of a kernel's id map: lines of inside, outside, length.
func mappedID(text string, id uint32) (uint32, error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		var n [3]uint64
		for i := range f {
			if i < len(n) {
				n[i], _ = strconv.ParseUint(f[i], 10, 33)
			}
		}
		if at := uint64(id); len(f) == len(n) && at >= n[0] && at-n[0] < n[2] {
			return uint32(n[1] + at - n[0]), nil
		}
	}
	return 0, fault.New(fault.Precondition, "find id %d on the host: it is not mapped", id)
}
