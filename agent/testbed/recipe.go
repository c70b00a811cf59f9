package testbed

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// Image is a Debian root file system that mmdebstrap makes.
type Image struct {
	Name     string // on the hosts
	Suite    string // of Debian
	Packages []string
}

// The images of the testbed.
var (
	// Debian boots systemd and has PostgreSQL, without a cluster.
	Debian = Image{Name: "debian", Suite: "bookworm", Packages: append([]string{"postgresql"}, basePackages...)}
	// DebianNext is the release after it, without PostgreSQL.
	DebianNext = Image{Name: "debian-next", Suite: "trixie", Packages: basePackages}
)

// basePackages boot, and show and load what a server was given.
var basePackages = []string{"systemd-sysv", "dbus", "procps", "iproute2", "iputils-ping", "iperf3"}

// excluded is documentation, and PostgreSQL's compiler, which is half of its size and which
// it does without.
var excluded = []string{
	"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*",
	"/usr/lib/*/libLLVM*", "/usr/lib/*/libz3*", "/usr/lib/postgresql/*/lib/llvmjit*", "/usr/lib/postgresql/*/lib/bitcode/*",
}

// recipe is mmdebstrap's arguments, all but the suite's archive and the output.
func (i Image) recipe() []string {
	args := []string{
		"--variant=minbase", "--include=" + strings.Join(i.Packages, ","),
		`--aptopt=Acquire::Languages "none"`, `--aptopt=Acquire::Retries "3"`,
	}
	for _, e := range excluded {
		args = append(args, "--dpkgopt=path-exclude="+e)
	}
	// Databases are made by those who want one, not by the package.
	args = append(args,
		`--essential-hook=mkdir -p "$1/etc/postgresql-common"`,
		`--essential-hook=echo "create_main_cluster = false" >"$1/etc/postgresql-common/createcluster.conf"`,
		// Two servers with one machine id would be one to DHCP and to the journal.
		`--customize-hook=: >"$1/etc/machine-id"`,
		`--customize-hook=rm -f "$1/var/lib/dbus/machine-id" "$1/etc/hostname" "$1/etc/resolv.conf"`,
	)
	return append(args, i.Suite)
}

// fileName has the recipe in it: another recipe is another file.
func (i Image) fileName() string {
	sum := sha256.Sum256([]byte(strings.Join(i.recipe(), "\x00")))
	return i.Name + "-" + i.Suite + "-" + hex.EncodeToString(sum[:6]) + ".tar.zst"
}
