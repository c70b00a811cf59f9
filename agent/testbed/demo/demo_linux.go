package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed/inventory"
)

// Config says what the demo runs.
type Config struct {
	Dir      string // of the bed; the demo removes it
	Bin      string // with reflejo, terraform-provider-reflejo
	Examples string // the directory of examples
}

// Run is the whole demo. The error names what is not as it should be.
func Run(ctx context.Context, c Config, out io.Writer) (err error) {
	r := &report{out: out, started: time.Now()}
	bed, err := testbed.New(testbed.Config{Name: "demo", Dir: c.Dir, Bin: c.Bin})
	if err != nil {
		return err
	}
	if err := bed.Down(ctx); err != nil { // what an interrupted demo left
		return err
	}
	down := func() error { return bed.Down(context.WithoutCancel(ctx)) }
	defer func() {
		if err != nil {
			err = errors.Join(err, down())
		}
	}()
	w := &world{bed: bed, dir: filepath.Join(bed.Dir(), "hcl"), vars: map[string]string{}}
	// Everything that serves the demo ends before the bed does.
	serving, stop := context.WithCancel(ctx)
	defer stop()
	if err := w.start(serving, r, filepath.Join(c.Examples, "three-hosts")); err != nil {
		return err
	}
	before, err := w.inventories()
	if err != nil {
		return err
	}
	l := limits{cores: 0.5, memory: 256 * mebibyte, disk: 10 << 30, ingress: 100e6, egress: 50e6}
	for _, chapter := range []func(context.Context, *report, *limits) error{
		w.create, w.limits, w.resize, w.suspend, w.killAgent, w.planAgain,
	} {
		if err := chapter(ctx, r, &l); err != nil {
			return err
		}
	}
	if err := w.destroy(ctx, r, before); err != nil {
		return err
	}
	if err := w.copies(ctx, r, filepath.Join(c.Examples, "snapshots-and-migration"), before); err != nil {
		return err
	}
	stop()
	return leaveNothing(r, bed, down)
}

// start brings up hosts, images and a registry.
func (w *world) start(ctx context.Context, r *report, example string) error {
	r.title("Three hosts, each with an agent, and an operator")
	if err := w.bed.Up(ctx); err != nil {
		return err
	}
	if err := os.CopyFS(w.dir, os.DirFS(example)); err != nil {
		return fmt.Errorf("copy example: %w", err)
	}
	out, err := w.command(ctx, "reflejo", "status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "note:") {
			r.say("%s", strings.TrimRight(line, "\n"))
		}
	}
	r.title("Images: two releases of Debian, made once and kept, and one on a registry")
	for name, image := range map[string]testbed.Image{"debian": testbed.Debian, "debian_next": testbed.DebianNext} {
		start := time.Now()
		file, err := image.File(ctx)
		if err != nil {
			return err
		}
		w.vars[name] = "host:" + file
		r.say("%-12s %s (%.0f s)", name, filepath.Base(file), time.Since(start).Seconds())
	}
	if w.vars["hello"], err = serveHello(ctx, w.bed); err != nil {
		return err
	}
	r.say("%-12s %s", "hello", w.vars["hello"])
	_, err = w.terraform(ctx, "init")
	return err
}

func (w *world) create(ctx context.Context, r *report, _ *limits) error {
	r.title("terraform apply: two networks, six servers (examples/three-hosts)")
	line, took, err := w.apply(ctx, nil)
	if err != nil {
		return err
	}
	r.say("%s  (%.1f s, images imported on the way)", line, took.Seconds())
	for _, server := range []string{"debian-alpha", "debian-beta", "next-beta", "next-gamma"} {
		state, system, err := w.booted(ctx, server)
		if err != nil {
			return err
		}
		r.check(state == "running", "%s: systemd of %s is %s", server, system, state)
	}
	for _, host := range []string{"alpha", "gamma"} {
		body, err := w.get(ctx, fmt.Sprintf("http://%s:8080/", testbed.Address(host)))
		if err != nil {
			return err
		}
		r.check(body == page, "hello-%s answers on its host's port 8080", host)
	}
	out, err := w.command(ctx, "reflejo", "server", "list")
	for line := range strings.Lines(out) {
		r.say("%s", strings.TrimRight(line, "\n"))
	}
	return err
}

// booted waits until systemd has started all there is to start, and returns what it then
// says of itself and the system's name.
func (w *world) booted(ctx context.Context, server string) (state, system string, err error) {
	for range 600 {
		out, err := w.inside(ctx, server, `systemctl is-system-running 2>&1; . /etc/os-release; echo "$PRETTY_NAME"`)
		if err != nil {
			return "", "", err
		}
		state, system, _ = strings.Cut(out, "\n")
		if state == "running" || state == "degraded" {
			break
		}
		pause(ctx, 100*time.Millisecond)
	}
	return state, system, nil
}

func (w *world) limits(ctx context.Context, r *report, l *limits) error {
	r.title("Every limit of %s under ten seconds of load, from inside and outside", measuredServer)
	if err := w.seen(ctx, r, *l); err != nil {
		return err
	}
	if err := r.best(func() ([]measured, error) { return w.cpu(ctx, *l) }); err != nil {
		return err
	}
	if err := w.memory(ctx, r, *l); err != nil {
		return err
	}
	if err := r.best(func() ([]measured, error) { return w.disk(ctx, 20*mebibyte, 200) }); err != nil {
		return err
	}
	if err := r.best(func() ([]measured, error) { return w.network(ctx, *l) }); err != nil {
		return err
	}
	return r.best(func() ([]measured, error) {
		m, err := w.processes(ctx, 300)
		return []measured{m}, err
	})
}

// bootOf tells one run of a server from another: when its first process began.
func (w *world) bootOf(ctx context.Context, server string) (string, error) {
	return w.inside(ctx, server, `cut -d' ' -f22 /proc/1/stat`)
}

func (w *world) resize(ctx context.Context, r *report, l *limits) error {
	r.title("Live resize: more CPU, memory, disk and bandwidth, without a restart")
	boot, err := w.bootOf(ctx, measuredServer)
	if err != nil {
		return err
	}
	changes := map[string]string{"cores": "1", "memory": "512MiB", "egress": "80mbit"}
	*l = limits{cores: 1, memory: 512 * mebibyte, disk: l.disk, egress: 80e6}
	conditions, err := w.conditions(ctx, measuredHost)
	if err != nil {
		return err
	}
	if why, no := conditions["NoLiveGrow"]; no {
		r.say("the disk stays as it is, this machine does not let it grow: %s", why)
	} else {
		changes["disk"], l.disk = "12GiB", 12<<30
	}
	line, took, err := w.apply(ctx, changes)
	if err != nil {
		return err
	}
	r.say("%s  (%.1f s)", line, took.Seconds())
	if err := w.seen(ctx, r, *l); err != nil {
		return err
	}
	if err := r.best(func() ([]measured, error) { return w.cpu(ctx, *l) }); err != nil {
		return err
	}
	if err := r.best(func() ([]measured, error) { return w.network(ctx, *l) }); err != nil {
		return err
	}
	again, err := w.bootOf(ctx, measuredServer)
	r.check(again == boot, "%s was not restarted", measuredServer)
	return err
}

func (w *world) suspend(ctx context.Context, r *report, _ *limits) error {
	r.title("Suspend and resume")
	boot, err := w.bootOf(ctx, measuredServer)
	if err != nil {
		return err
	}
	if _, err := w.inside(ctx, measuredServer, "setsid sh -c 'while :; do :; done' >/dev/null 2>&1 </dev/null &"); err != nil {
		return err
	}
	if _, _, err := w.apply(ctx, map[string]string{"power": "suspended"}); err != nil {
		return err
	}
	first, err := w.usage(ctx, measuredHost, measuredServer)
	if err != nil {
		return err
	}
	pause(ctx, 2*time.Second)
	last, err := w.usage(ctx, measuredHost, measuredServer)
	if err != nil {
		return err
	}
	r.check(first.GetCpu().AsDuration() == last.GetCpu().AsDuration(), "a suspended server with a busy loop uses no CPU")
	if _, _, err := w.apply(ctx, map[string]string{"power": "running"}); err != nil {
		return err
	}
	again, err := w.bootOf(ctx, measuredServer)
	if err != nil {
		return err
	}
	r.check(again == boot, "resumed, it goes on where it was")
	_, err = w.inside(ctx, measuredServer, `pkill -f '[w]hile :; do'`)
	return err
}

func (w *world) killAgent(ctx context.Context, r *report, _ *limits) error {
	r.title("kill -9 of alpha's agent")
	boot, err := w.bootOf(ctx, measuredServer)
	if err != nil {
		return err
	}
	alpha, err := w.bed.Host(measuredHost)
	if err != nil {
		return err
	}
	if err := alpha.KillAgent(ctx); err != nil {
		return err
	}
	body, err := w.get(ctx, fmt.Sprintf("http://%s:8080/", testbed.Address(measuredHost)))
	r.check(err == nil && body == page, "without the agent, its servers answer")
	start := time.Now()
	if err := alpha.Start(ctx); err != nil {
		return err
	}
	r.say("a new agent answers after %d ms", time.Since(start).Milliseconds())
	again, err := w.bootOf(ctx, measuredServer)
	if err != nil {
		return err
	}
	r.check(again == boot, "it found its servers, none was restarted")
	return nil
}

func (w *world) planAgain(ctx context.Context, r *report, _ *limits) error {
	r.title("terraform plan, again")
	empty, err := w.planIsEmpty(ctx)
	r.check(empty, "nothing to do")
	return err
}

// destroy removes all that Terraform made, and compares what agents keep with what they
// kept before.
func (w *world) destroy(ctx context.Context, r *report, before map[string]inventory.Inventory) error {
	r.title("terraform destroy")
	out, err := w.terraform(ctx, "destroy", "-auto-approve")
	if err != nil {
		return err
	}
	r.say("%s", lineWith(out, "Destroy complete!"))
	after, err := w.inventories()
	if err != nil {
		return err
	}
	for _, host := range w.bed.HostNames() {
		d := before[host].Diff(after[host])
		r.check(d == "", "%s has what it had before the first apply (%d mounts, links, rules, files, …)", host, len(after[host]))
		if d != "" {
			r.say("difference:\n%s", d)
		}
	}
	return nil
}

// leaveNothing removes the bed and looks for traces of it.
func leaveNothing(r *report, bed *testbed.Bed, down func() error) error {
	r.title("The hosts go")
	if err := down(); err != nil {
		return err
	}
	left, err := inventory.Take(inventory.Scope{Dirs: []string{bed.Dir()}, Cgroup: "reflejo-demo-*", AllProcesses: true})
	if err != nil {
		return err
	}
	left = left.Only(bed.Dir(), "reflejo-demo", "link demo")
	r.check(len(left) == 0, "no process, mount, loop device, control group, link or file is left")
	if len(left) > 0 {
		r.say("left:\n%s", left)
	}
	return r.end()
}
