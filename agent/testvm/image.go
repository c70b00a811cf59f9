// Package testvm runs programs in a throw-away virtual machine: a stock Debian kernel
// with systemd as init and the unified cgroup hierarchy, which the machine that runs the
// tests may not have.
//
//	img, err := testvm.BuildImage(ctx, testvm.ImageConfig{Cache: ".cache", Log: os.Stderr})
//	codes, err := testvm.Run(ctx, testvm.Machine{Image: img, Dir: "bin/vm", Output: os.Stdout},
//		"./cgroup.test -test.v", "./disk.test")
//
// The image is made once by mmdebstrap and kept under a key of what it is made from. Each
// run boots a copy-on-write view of it in QEMU by software emulation, so it needs no
// /dev/kvm, attaches Dir read-only as /testvm, runs the commands there and powers off.
// Only Linux hosts can do it; the tools are mmdebstrap, mkfs.ext4 and qemu-system-x86_64.
package testvm

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
)

// Suite is the Debian release of the machine.
const Suite = "bookworm"

// diskSize is the root disk: a sparse file, mostly free for what tests write.
const diskSize = 8 << 30

// packages are what tests find on the machine: what an agent's host has.
var packages = []string{
	"btrfs-progs", "busybox-static", "ca-certificates", "dbus", "e2fsprogs", "iperf3", "iproute2", "kmod", "linux-image-cloud-amd64",
	"lxcfs", "nftables", "procps", "runc", "systemd-sysv", "udev", "util-linux", "xfsprogs", "zstd",
}

//go:embed guest/run.sh
var guestRun string

//go:embed guest/testvm.service
var guestUnit string

// initramfs holds only what finds the root disk: unpacking it is much of an emulated boot.
const initramfs = "MODULES=list\nCOMPRESS=gzip\nBUSYBOX=n\nRESUME=none\n"

// initramfsModules is /etc/initramfs-tools/modules.
const initramfsModules = "virtio_pci\nvirtio_blk\next4\n"

// masked units have nothing to do on a machine that lives for minutes.
var masked = []string{
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
	"getty.target", "getty@tty1.service", "serial-getty@ttyS0.service", "systemd-hwdb-update.service", "systemd-journal-flush.service",
	"systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-random-seed.service", "systemd-pstore.service", "systemd-machine-id-commit.service",
}

// ImageConfig says how to make the image.
type ImageConfig struct {
	Cache  string    // directory of images; made if it is not there
	Mirror string    // Debian mirror; "" means mmdebstrap's default
	Log    io.Writer // progress of a build; nil means none
}

// Image is a built machine image.
type Image struct {
	Disk, Kernel, Initrd string // files
	Built                bool   // not taken from the cache
}

// Key names the image's content: it changes when anything that goes into it does. Newer
// package versions of the same suite do not change it.
func Key() string {
	h := sha256.New()
	for _, part := range [][]string{{"testvm 1", Suite, fmt.Sprint(diskSize), guestRun, guestUnit, initramfs, initramfsModules}, packages, masked} {
		for _, s := range part {
			fmt.Fprintf(h, "%d:%s", len(s), s)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// imageIn is where the files of an image are.
func imageIn(dir string) Image {
	return Image{Disk: filepath.Join(dir, "root.img"), Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd.img")}
}

// bootstrapArgs is the command line of mmdebstrap; files is a directory whose content
// goes into the root.
func bootstrapArgs(c ImageConfig, files, root string) []string {
	hooks := []string{
		"cp -a " + quote(files) + "/. \"$1\"/",
		"chroot \"$1\" systemctl enable testvm.service",
		"chroot \"$1\" systemctl mask " + strings.Join(masked, " "),
		"chroot \"$1\" passwd -d root",
		"chroot \"$1\" update-initramfs -u",
		"rm -rf \"$1\"/usr/share/doc/* \"$1\"/usr/share/man/* \"$1\"/usr/share/locale/* \"$1\"/var/cache/apt/*.bin",
	}
	args := []string{"--variant=minbase", "--include=" + strings.Join(packages, ",")}
	for _, h := range hooks {
		args = append(args, "--customize-hook="+h)
	}
	args = append(args, Suite, root)
	if c.Mirror != "" {
		args = append(args, c.Mirror)
	}
	return args
}

// guestFiles is what goes into the root beside the packages.
func guestFiles() map[string]string {
	return map[string]string{
		"usr/local/sbin/testvm-run":                 guestRun,
		"etc/systemd/system/testvm.service":         guestUnit,
		"etc/initramfs-tools/conf.d/testvm":         initramfs,
		"etc/initramfs-tools/modules":               initramfsModules,
		"etc/hostname":                              "testvm\n",
		"etc/fstab":                                 "/dev/vda / ext4 noatime 0 0\n",
		"etc/systemd/journald.conf.d/volatile.conf": "[Journal]\nStorage=volatile\n",
	}
}

// quote makes one word of the shell's from s.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func sorted(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
