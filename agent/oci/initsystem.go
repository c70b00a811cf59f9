package oci

import (
	"path"
	"slices"

	"github.com/reflejo/terraform-provider-reflejo/agent/guestinit"
)

// initSystem is what runs as process 1.
type initSystem string

const (
	initSystemd initSystem = "systemd"
	initSysV    initSystem = "sysvinit"
	initOpenRC  initSystem = "openrc-init"
	initBusybox initSystem = "busybox"
	initRunit   initSystem = "runit"
	initOther   initSystem = "other"   // an image's own (s6-overlay and the like): must be process 1, ends on SIGTERM
	initOwn     initSystem = "reflejo" // ours: around an entry point, or alone
)

// initPaths are where an image's init is looked for, in the kernel's order.
var initPaths = []string{"/sbin/init", "/etc/init", "/bin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd"}

// initSystemOf tells an init by the file that its path leads to, all links followed; ""
// means that the file is not a known init. Only under the name init is BusyBox one.
func initSystemOf(name, target string) initSystem {
	switch base := path.Base(target); {
	case base == "systemd":
		return initSystemd
	case base == "openrc-init":
		return initOpenRC
	case base == "runit-init" || base == "runit":
		return initRunit
	case path.Base(name) != "init":
		return ""
	case base == "busybox" || base == "busybox.static":
		return initBusybox
	case slices.Contains(initPaths, name):
		return initSysV
	default:
		return initOther
	}
}

// launch is how a server is started.
type launch struct {
	System      initSystem
	Argv        []string
	NeedsBinary bool // the reflejo binary has to be in the server
	EntryPoint  bool // Argv runs the image's own command, in the image's directory
}

// plan decides how to start: init is the init system found in the image (system "" for
// none), entry what the image names as its command, script whether a first-boot script
// waits that nothing in the image would run.
func planLaunch(init string, system initSystem, entry []string, script bool) launch {
	o := guestinit.Options{}
	if script {
		o.FirstBoot = firstBootScript
	}
	ours := func(s initSystem, entryPoint bool) launch {
		return launch{System: s, Argv: append([]string{guestInitPath}, o.Args()...), NeedsBinary: true, EntryPoint: entryPoint}
	}
	switch {
	case system == "" && len(entry) > 0:
		o.Argv = entry
		return ours(initOwn, true)
	case system == "":
		return ours(initOwn, false)
	}
	argv := []string{init}
	if len(entry) > 0 {
		argv = entry // the image starts its init with arguments of its own
	}
	if script && system != initSystemd { // systemd gets a unit instead
		o.Exec, o.Argv = true, argv
		return ours(system, false)
	}
	return launch{System: system, Argv: argv}
}

// dir is the working directory of init.
func (l launch) dir(image string) string {
	if l.EntryPoint && image != "" {
		return image
	}
	return "/"
}

// stopWay is how an init is asked to shut down: a signal for it, or a command of its own.
type stopWay struct {
	Signal int
	Argv   []string
}

// Linux signal numbers, so that this file says the same on every system. sigRTMin is the
// first real-time signal as the C library counts: two are its own.
const (
	sigUSR2  = 12
	sigTERM  = 15
	sigRTMin = 34
)

// stopOf follows each init's own convention.
func stopOf(s initSystem) stopWay {
	switch s {
	case initSystemd:
		return stopWay{Signal: sigRTMin + 3} // halt.target
	case initBusybox:
		return stopWay{Signal: sigUSR2} // poweroff; SIGTERM would reboot
	case initSysV:
		return stopWay{Argv: []string{"/sbin/init", "0"}} // runlevel 0; signals only mean what /etc/inittab says
	case initOpenRC:
		return stopWay{Argv: []string{"/sbin/openrc-shutdown", "--poweroff", "now"}}
	case initRunit:
		return stopWay{Argv: []string{"/sbin/runit-init", "0"}}
	default:
		return stopWay{Signal: sigTERM}
	}
}
