package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
)

// downTimeout bounds how long the kernel may take to let go of what was killed.
const downTimeout = 30 * time.Second

// Bed is a set of test hosts. Its state is in its directory and in the kernel, so several
// processes can use the same bed.
type Bed struct{ n names }

// New describes a bed; nothing is made before Up. Relative directories become absolute.
func New(c Config) (*Bed, error) {
	var err1, err2 error
	c.Dir, err1 = filepath.Abs(c.Dir)
	c.Bin, err2 = filepath.Abs(c.Bin)
	if err := errors.Join(err1, err2, c.check()); err != nil {
		return nil, err
	}
	return &Bed{names{c}}, nil
}

// Dir is the bed's directory.
func (b *Bed) Dir() string { return b.n.Dir }

// HostNames lists the bed's hosts.
func (b *Bed) HostNames() []string { return slices.Clone(b.n.hosts()) }

// Host is the host of that name, which must be one of HostNames.
func (b *Bed) Host(name string) (*Host, error) {
	if !slices.Contains(b.n.hosts(), name) {
		return nil, fmt.Errorf("host %q is unknown: use one of %v", name, b.n.hosts())
	}
	return &Host{bed: b, name: name}, nil
}

// Up makes what is missing of the bed and starts the agents that do not run. It returns
// when all of them answer. Hosts that were killed or powered off are booted.
func (b *Bed) Up(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("make testbed: namespaces and mounts need root: run it as root")
	}
	if err := os.MkdirAll(b.n.path("logs"), 0o755); err != nil {
		return err
	}
	unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := b.makeFiles(); err != nil {
		return err
	}
	if err := errors.Join(makePinDir(b.n.pinDir()), b.n.upSwitch(), b.n.upPlace(Operator)); err != nil {
		return err
	}
	for _, name := range b.n.hosts() {
		if err := (&Host{b, name}).boot(ctx); err != nil {
			return err
		}
	}
	for _, name := range b.n.hosts() {
		if err := (&Host{b, name}).waitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Down removes everything of the bed: processes, control groups, loop devices, mounts,
// namespaces and files. It goes on after an error and may be called again.
func (b *Bed) Down(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	unlock, err := b.lock()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	// Commands of the operator end first: they may be waiting for hosts.
	operator := belonging{netns: namespaceID(b.n.netns(Operator)), cgroup: "/" + b.n.cgroup(Operator)}
	errs := []error{operator.killAll(ctx)}
	for _, name := range b.n.hosts() {
		errs = append(errs, (&Host{b, name}).destroy(ctx))
	}
	errs = append(errs, dropNetns(b.n.netns(Operator)), dropNetns(b.n.netns(switchPlace)))
	if err := errors.Join(append(errs, unmount(b.n.pinDir()))...); err != nil {
		return err
	}
	_ = os.Remove(runRoot) // the last bed takes it along
	return os.RemoveAll(b.n.Dir)
}

// lock keeps other processes from changing the bed.
func (b *Bed) lock() (unlock func(), err error) {
	f, err := os.OpenFile(b.n.path("lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// Command is a command in the operator's place: its network, and an environment in which
// `reflejo …` and a bare `provider "reflejo" {}` speak to the bed's hosts.
func (b *Bed) Command(ctx context.Context, argv ...string) *exec.Cmd {
	args := append([]string{"--net=" + b.n.netns(Operator), "--"}, argv...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = append(os.Environ(), b.Env()...)
	return cmd
}

// Env is what an operator's environment has ("NAME=value").
func (b *Bed) Env() []string {
	hosts := make([]string, 0, len(b.n.hosts()))
	for _, name := range b.n.hosts() {
		hosts = append(hosts, name+"="+Endpoint(name))
	}
	return []string{
		"PATH=" + b.n.Bin + string(os.PathListSeparator) + os.Getenv("PATH"),
		"TF_CLI_CONFIG_FILE=" + b.n.path("terraform.rc"),
		"CHECKPOINT_DISABLE=1",
		api.EnvHosts + "=" + strings.Join(hosts, ","),
		api.EnvCAFile + "=" + b.n.path("pki", "ca.crt"),
		api.EnvCertFile + "=" + b.n.path("pki", "operator.crt"),
		api.EnvKeyFile + "=" + b.n.path("pki", "operator.key"),
	}
}

// Dial connects from the operator's place.
func (b *Bed) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = Inside(b.n.netns(Operator), "", func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens in the operator's place.
func (b *Bed) Listen(ctx context.Context, network, address string) (l net.Listener, err error) {
	err = Inside(b.n.netns(Operator), "", func() error {
		l, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return l, err
}

// Client calls a host's agent as the operator.
func (b *Bed) Client(host string) (*api.Client, error) {
	credentials, err := api.CredentialFiles(b.n.path("pki", "ca.crt"), b.n.path("pki", "operator.crt"), b.n.path("pki", "operator.key"))
	if err != nil {
		return nil, err
	}
	return api.Dial(api.Config{Host: host, Address: Endpoint(host), Credentials: credentials, Dial: b.Dial})
}
