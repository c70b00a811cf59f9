package testvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Run boots the machine, runs the commands (scripts of /bin/sh) one after the other as
// root below systemd, and returns their exit codes when it has powered off. When ctx ends
// the machine is killed. ErrNoResult comes with the codes so far and the console's last
// words in its text.
func Run(ctx context.Context, m Machine, commands ...string) ([]int, error) {
	m = m.withDefaults()
	work, err := os.MkdirTemp("", "testvm-")
	if err != nil {
		return nil, fmt.Errorf("run test machine: %w", err)
	}
	defer os.RemoveAll(work)
	if err := dataDisk(ctx, m.Dir, work, commands); err != nil {
		return nil, fmt.Errorf("make the test machine's data disk: %w", err)
	}
	var control bytes.Buffer
	var ports sync.WaitGroup
	for name, to := range map[string]io.Writer{"output": m.Output, "control": &control} {
		stop, err := collect(ctx, &ports, filepath.Join(work, name), to)
		if err != nil {
			return nil, fmt.Errorf("run test machine: %w", err)
		}
		defer stop()
	}
	err = qemu(ctx, m.args(work))
	ports.Wait()
	codes, booted, resultErr := parseControl(control.String(), len(commands))
	switch {
	case resultErr == nil:
		return codes, nil
	case ctx.Err() != nil:
		err = fmt.Errorf("run test machine: %w (booted: %v, %d of %d commands done)", ctx.Err(), booted, len(codes), len(commands))
	default:
		err = errors.Join(fmt.Errorf("run test machine: %w (booted: %v, %d of %d commands done)", resultErr, booted, len(codes), len(commands)), err)
	}
	return codes, fmt.Errorf("%w\nconsole:\n%s", err, lastWords(filepath.Join(work, "console.log")))
}

// dataDisk puts the directory and the commands on a disk. mkfs copies one directory, so
// both are copied into one first.
func dataDisk(ctx context.Context, dir, work string, commands []string) error {
	content := filepath.Join(work, "data")
	if err := os.Mkdir(content, 0o755); err != nil {
		return err
	}
	if dir != "" {
		if err := os.CopyFS(content, os.DirFS(dir)); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(content, ".commands"), 0o755); err != nil {
		return err
	}
	for i, c := range commands {
		if err := os.WriteFile(filepath.Join(content, ".commands", commandFile(i)), []byte(c+"\n"), 0o644); err != nil {
			return err
		}
	}
	size, err := directorySize(content)
	if err != nil {
		return err
	}
	if err := makeDisk(ctx, filepath.Join(work, "data.img"), content, "testvm", size); err != nil {
		return err
	}
	return os.RemoveAll(content)
}

// collect listens for QEMU on a socket and copies what comes until the machine has ended.
func collect(ctx context.Context, ports *sync.WaitGroup, socket string, to io.Writer) (stop func(), err error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	ports.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return // the machine never started: qemu's error says why
		}
		defer conn.Close()
		_, _ = io.Copy(to, conn)
	})
	return func() { l.Close() }, nil
}

// qemu runs the machine to its end. It dies with us.
func qemu(ctx context.Context, args []string) error {
	const name = "qemu-system-x86_64"
	path, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("%w (on Debian: apt-get install qemu-system-x86)", err)
	}
	// Pdeathsig is about the thread that forked, so this goroutine keeps it until the end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var out tail
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w\n%s", name, err, out.b)
	}
	return nil
}

func lastWords(file string) []byte {
	b, err := os.ReadFile(file)
	if err != nil {
		return []byte(err.Error())
	}
	return b[max(0, len(b)-4096):]
}
