//go:build linux && vmguest

package installed

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// patience is how long anything may take on an emulated processor of a busy machine.
const patience = 5 * time.Minute

const (
	etc    = "/etc/reflejo"
	groups = "/sys/fs/cgroup/reflejo"
	pkiDir = "/root/pki"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a program of the host and returns what it printed.
func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := command(argv...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// command is a program that is told, as an operator's is, where the agent is.
func command(argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(testContext, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), api.EnvHosts+"=alpha=127.0.0.1:7443", api.EnvCAFile+"="+pkiDir+"/ca.crt",
		api.EnvCertFile+"="+pkiDir+"/me.crt", api.EnvKeyFile+"="+pkiDir+"/me.key")
	return cmd
}

// inside runs a script in a server.
func inside(t *testing.T, server, script string) string {
	t.Helper()
	return run(t, "reflejo", "server", "exec", "-n", server, "--", "/bin/sh", "-c", script)
}

// logs shows what the agent and the kernel said last.
func logs(t *testing.T) {
	t.Helper()
	t.Log(run(t, "/bin/sh", "-c", "journalctl -u reflejo --no-pager -n 80; dmesg | tail -n 40"))
}

// eventually polls until check returns nil.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(300 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// dialled is one connection for all: handshakes are dear on an emulated processor.
var dialled = sync.OnceValues(func() (*api.Client, error) {
	who, err := api.CredentialFiles(pkiDir+"/ca.crt", pkiDir+"/me.crt", pkiDir+"/me.key")
	if err != nil {
		return nil, err
	}
	return api.Dial(api.Config{Host: "alpha", Address: "127.0.0.1:7443", Credentials: who})
})

// client calls the agent as the provider does.
func client(t *testing.T) *api.Client {
	t.Helper()
	c, err := dialled()
	must(t, err)
	return c
}

// answers waits until the service is up and its agent answers.
func answers(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		out, err := command("reflejo", "server", "list").CombinedOutput()
		if err != nil {
			return fmt.Errorf("no answer: %w\n%s", err, out)
		}
		return nil
	})
	if state := run(t, "systemctl", "is-active", "reflejo.service"); state != "active" {
		t.Errorf("the service is %s", state)
	}
}

func get(t *testing.T, name string) *reflejov1.Server {
	t.Helper()
	answer, err := client(t).Servers.GetServer(t.Context(), connect.NewRequest(&reflejov1.GetServerRequest{Id: name}))
	must(t, err)
	return answer.Msg.GetServer()
}

// becomes waits until a server has nothing under way and is in the state.
func becomes(t *testing.T, name, state string) *reflejov1.Server {
	t.Helper()
	var s *reflejov1.Server
	eventually(t, func() error {
		s = get(t, name)
		if s.GetState() == "failed" {
			t.Fatalf("server %s failed: %s", name, s.GetOperation().GetError())
		}
		if o := s.GetOperation(); s.GetState() != state || (o != nil && !o.GetDone()) {
			return fmt.Errorf("server %s is %s, want %s (%s %s %s)", name, s.GetState(), state, o.GetKind(), o.GetStep(), o.GetError())
		}
		return nil
	})
	return s
}

// create makes a server and waits for it.
func create(t *testing.T, spec *reflejov1.ServerSpec, state string) *reflejov1.Server {
	t.Helper()
	_, err := client(t).Servers.CreateServer(t.Context(), connect.NewRequest(&reflejov1.CreateServerRequest{Spec: spec}))
	must(t, err)
	return becomes(t, spec.GetName(), state)
}

// update changes a server's spec and waits until that is done.
func update(t *testing.T, name string, change func(*reflejov1.ServerSpec)) {
	t.Helper()
	s := get(t, name)
	spec := proto.Clone(s.GetSpec()).(*reflejov1.ServerSpec)
	change(spec)
	_, err := client(t).Servers.UpdateServer(t.Context(), connect.NewRequest(&reflejov1.UpdateServerRequest{Spec: spec}))
	must(t, err)
	becomes(t, name, s.GetState())
}

// life is what tells two runs of a server apart: the host's pid of its init, and when that
// started, in ticks since the host did.
type life struct{ pid, started string }

// lifeOf finds a server's init: the process of its group that is process 1 in there.
func lifeOf(t *testing.T, id string) (life, error) {
	t.Helper()
	var procs []string
	err := filepath.WalkDir(filepath.Join(groups, id), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == "cgroup.procs" {
			text, readErr := os.ReadFile(path)
			procs, err = append(procs, strings.Fields(string(text))...), readErr
		}
		return err
	})
	if err != nil {
		return life{}, err
	}
	for _, pid := range procs {
		status, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			continue // it ended meanwhile
		}
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "NSpid:" && f[2] == "1" {
				stat, err := os.ReadFile("/proc/" + pid + "/stat")
				if err != nil {
					return life{}, err
				}
				_, rest, _ := bytes.Cut(stat, []byte(") "))
				return life{pid, strings.Fields(string(rest))[19]}, nil
			}
		}
	}
	return life{}, fmt.Errorf("no init among the processes %v of %s", procs, id)
}

// group reads a file of a server's control group.
func group(t *testing.T, id, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(groups, id, file))
	must(t, err)
	return strings.TrimSpace(string(text))
}

// tinyTar writes a root file system with busybox alone; reflejo's own init boots it.
func tinyTar(t *testing.T) string {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	must(t, err)
	file := filepath.Join(t.TempDir(), "tiny.tar")
	out, err := os.Create(file)
	must(t, err)
	w := tar.NewWriter(out)
	add := func(h tar.Header, body string) {
		h.Size, h.ModTime = int64(len(body)), time.Unix(0, 0)
		must(t, w.WriteHeader(&h))
		_, err := w.Write([]byte(body))
		must(t, err)
	}
	for _, d := range []string{"bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var"} {
		add(tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}, "")
	}
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, string(busybox))
	for _, name := range strings.Fields("sh cat cut date dd df echo false free grep ip kill ls md5sum mv nc nproc ping ps reboot rm seq sleep sync tail true uptime wget") {
		add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, "")
	}
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\n")
	add(tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, "root:x:0:\n")
	must(t, w.Close())
	must(t, out.Close())
	return file
}
