//go:build linux

// Command attack runs inside a virtual server, as its root, and tries what a server must
// not be able to do. It says what the kernel answered; the tests judge.
//
//	attack syscalls                 one line per dangerous system call: its name and error
//	attack mounts                   one line per kind of mount: its name and error
//	attack nested CMD…              runs it in a user, mount and control group namespace of its own, as root there
//	attack escape PATH              leaves its root directory, if that is a mere chroot, and looks for PATH
//	attack writable DIR…            names every file that can be opened for writing
//	attack hold KIND [MOST]         takes as many as it gets, says how many, holds them until stdin ends
//	attack take KIND MOST           the same, but ends at once: 0 if it got them all, 1 if not
//	attack inject IFACE             puts the frames on stdin (hex, one a line) on the wire
//	attack sniff IFACE LAST         says the text of every frame that carries one, until LAST
//	attack connect NETWORK ADDR…    0 if somebody answers, 1 if not
//	attack call NAME                one call that the tests look at alone: 0 if it succeeded, 1 if not
//
// Exit code 2 means that the attack itself is broken.
package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		broken(errors.New("no attack is named"))
	}
	args := os.Args[2:]
	argument := func(i int) string {
		if i >= len(args) {
			broken(fmt.Errorf("%s: argument %d is missing", os.Args[1], i+1))
		}
		return args[i]
	}
	most := func() int {
		if len(args) < 2 {
			return 1 << 30
		}
		n, err := strconv.Atoi(args[1])
		if err != nil {
			broken(err)
		}
		return n
	}
	switch os.Args[1] {
	case "syscalls":
		for _, c := range calls() {
			fmt.Println(c.name, name(c.do()))
		}
	case "mounts":
		for _, m := range mounts() {
			fmt.Println(m.name, name(m.do()))
		}
	case "nested":
		os.Exit(nested(args))
	case "escape":
		tried(escape(argument(0)))
	case "writable":
		writable(args)
	case "hold", "take":
		n, err := take(argument(0), most())
		fmt.Println(n, name(err))
		if os.Args[1] == "hold" {
			_, _ = os.Stdin.Read(make([]byte, 1))
		} else if n < most() {
			os.Exit(1)
		}
	case "inject":
		check(inject(argument(0)))
	case "sniff":
		check(sniff(argument(0), argument(1)))
	case "connect":
		tried(connect(argument(0), args[1:]))
	case "call":
		tried(call(argument(0)))
	default:
		broken(fmt.Errorf("unknown attack %q", os.Args[1]))
	}
}

// name is an error as the tests compare it: "ok" or the errno's name.
func name(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// tried ends the program with what an attack came to.
func tried(err error) {
	fmt.Println(name(err))
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

func check(err error) {
	if err != nil {
		broken(err)
	}
}

func broken(err error) {
	fmt.Fprintln(os.Stderr, "attack:", err)
	os.Exit(2)
}
