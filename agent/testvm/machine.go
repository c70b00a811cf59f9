package testvm

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
)

// Machine is one boot.
type Machine struct {
	Image  Image
	Disk   string    // a copy of Image.Disk (CopyDisk) that keeps what is written; "" means a view that forgets
	Dir    string    // its content is /testvm in the machine, read-only, and the commands' directory
	Memory int       // MiB; 0 means 2048
	CPUs   int       // 0 means 2
	Output io.Writer // what the commands print; nil means none
}

func (m Machine) withDefaults() Machine {
	if m.Memory == 0 {
		m.Memory = 2048
	}
	if m.CPUs == 0 {
		m.CPUs = 2
	}
	if m.Output == nil {
		m.Output = io.Discard
	}
	return m
}

// cmdline are the kernel's arguments: unified cgroups as stock, pressure on, mitigations
// off because emulated ones only cost time, and a panic ends the machine.
const cmdline = "root=/dev/vda rw console=ttyS0 quiet loglevel=4 panic=-1 oops=panic psi=1 mitigations=off audit=0 " +
	"random.trust_cpu=on systemd.unified_cgroup_hierarchy=1 systemd.show_status=no systemd.log_level=warning"

// args is the command line of QEMU. In work are the two sockets that we listen on, the
// data disk, and the console's log.
func (m Machine) args(work string) []string {
	root := "if=virtio,format=raw,cache=unsafe,snapshot=on,file=" + comma(m.Image.Disk)
	if m.Disk != "" {
		// What the machine wrote is on the host when it is killed, what it did not is lost.
		root = "if=virtio,format=raw,cache=writeback,file=" + comma(m.Disk)
	}
	in := func(name string) string { return filepath.Join(work, name) }
	return []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "q35", "-accel", "tcg,thread=multi",
		"-smp", strconv.Itoa(m.CPUs), "-m", strconv.Itoa(m.Memory),
		"-kernel", m.Image.Kernel, "-initrd", m.Image.Initrd, "-append", cmdline,
		"-drive", root,
		"-drive", "if=virtio,format=raw,readonly=on,file=" + comma(in("data.img")),
		"-serial", "file:" + in("console.log"),
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=output,path=" + comma(in("output")),
		"-device", "virtserialport,chardev=output,name=testvm.output",
		"-chardev", "socket,id=control,path=" + comma(in("control")),
		"-device", "virtserialport,chardev=control,name=testvm.control",
	}
}

// comma escapes a file name for QEMU's options.
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// ErrNoResult: the machine ended before all commands had.
var ErrNoResult = errors.New("the machine ended before all commands had")

// parseControl reads the exit codes from what the machine said on its control port.
func parseControl(content string, commands int) (codes []int, booted bool, err error) {
	for line := range strings.Lines(content) {
		word, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "ready":
			booted = true
		case "exit":
			code, err := strconv.Atoi(arg)
			if err != nil || code < 0 || code > 255 {
				return codes, booted, fmt.Errorf("read exit code %q", arg)
			}
			codes = append(codes, code)
		}
	}
	if len(codes) < commands {
		return codes, booted, ErrNoResult
	}
	return codes, booted, nil
}
