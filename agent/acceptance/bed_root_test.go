//go:build linux && root && crashpoints

package acceptance

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
)

// A step of a test that takes longer than this is stuck.
const patience = 2 * time.Minute

// bin is the directory with the programs under test, built once with crash points.
var bin string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "reflejo-acceptance-")
	if err == nil {
		bin = dir
		build := exec.Command("go", "build", "-tags", "crashpoints", "-o", filepath.Join(dir, "reflejo"), "github.com/reflejo/terraform-provider-reflejo/agent")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, buildErr := build.CombinedOutput(); buildErr != nil {
			os.Stderr.Write(out)
			os.Exit(1)
		}
		// A bed wants a provider, these tests never run Terraform.
		err = os.WriteFile(filepath.Join(dir, "terraform-provider-reflejo"), nil, 0o755)
	}
	if err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// host is one test host with its agent.
type host struct {
	t      *testing.T
	config testbed.Config
	name   string
	api    *api.Client
}

// newHosts makes a bed of its own for a test.
func newHosts(t *testing.T, names ...string) []*host {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // servers' users walk through
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	c := testbed.Config{Name: "a" + strings.ToLower(rand.Text()[:6]), Dir: filepath.Join(dir, "bed"), Bin: bin, Hosts: names}
	b := bed(t, c)
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range names {
				if h, err := b.Host(name); err == nil {
					text, _ := os.ReadFile(h.LogFile())
					t.Logf("log of %s:\n%s", name, text[max(0, len(text)-16<<10):])
				}
			}
		}
		if err := b.Down(context.Background()); err != nil {
			t.Error("remove bed:", err)
		}
	})
	if err := b.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	var hosts []*host
	for _, name := range names {
		client, err := b.Client(name)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, &host{t, c, name, client})
	}
	return hosts
}

func bed(t *testing.T, c testbed.Config) *testbed.Bed {
	t.Helper()
	b, err := testbed.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// handle is the host in the bed, its agent's environment extended by env.
func (h *host) handle(env ...string) *testbed.Host {
	h.t.Helper()
	c := h.config
	c.AgentEnv = env
	handle, err := bed(h.t, c).Host(h.name)
	if err != nil {
		h.t.Fatal(err)
	}
	return handle
}

// restart ends the agent, if it runs, and starts it with env.
func (h *host) restart(env ...string) {
	h.t.Helper()
	handle := h.handle(env...)
	if handle.AgentPID() != 0 {
		if err := handle.KillAgent(h.t.Context()); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := handle.Start(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

// tinyImage imports an image of a static busybox, booted by our own init.
func (h *host) tinyImage() string {
	h.t.Helper()
	stream := h.api.Images.UploadImage(h.t.Context())
	text := tinyTar(h.t)
	header := &reflejov1.UploadImageHeader{Name: "tiny", Source: "tiny.tar", SizeBytes: int64(len(text))}
	send := func(m *reflejov1.UploadImageRequest) {
		if err := stream.Send(m); err != nil {
			_, err = stream.CloseAndReceive()
			h.t.Fatal(err)
		}
	}
	send(&reflejov1.UploadImageRequest{Part: &reflejov1.UploadImageRequest_Header{Header: header}})
	for len(text) > 0 {
		n := min(len(text), api.MaxChunk)
		send(&reflejov1.UploadImageRequest{Part: &reflejov1.UploadImageRequest_Data{Data: text[:n]}})
		text = text[n:]
	}
	answer, err := stream.CloseAndReceive()
	if err != nil {
		h.t.Fatal(err)
	}
	return answer.Msg.GetImage().GetId()
}

// tinyTar is a root file system with busybox and nothing else.
func tinyTar(t *testing.T) []byte {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err, "(install busybox-static)")
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, body []byte) {
		h.Size, h.ModTime = int64(len(body)), time.Unix(0, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var"} {
		add(tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, busybox)
	for _, name := range []string{"sh", "sleep", "cat", "ls", "dd", "df", "free", "mount", "umount", "mknod", "id", "ip", "ping", "nc", "ps", "kill", "yes", "tail", "ln", "arping", "chown", "touch", "rm", "mkdir", "echo", "true", "nproc", "uptime", "hostname", "wget", "httpd", "sync", "dmesg", "insmod", "reboot", "poweroff", "date", "stat", "find", "grep", "seq", "env", "sysctl", "chroot", "unshare", "nsenter"} {
		add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"))
	add(tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\nnogroup:x:65534:\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// spec is a small server's.
func spec(name, image string) *reflejov1.ServerSpec {
	return &reflejov1.ServerSpec{Id: uuid.NewString(), Name: name, Image: image, Power: "running",
		Cpu: &reflejov1.Cpu{MilliCores: 200}, Memory: &reflejov1.Memory{Max: 64 << 20}, Disk: &reflejov1.Disk{Size: 10 << 30}}
}

// create makes a server and waits until that is done.
func (h *host) create(s *reflejov1.ServerSpec) *reflejov1.Server {
	h.t.Helper()
	if _, err := h.api.Servers.CreateServer(h.t.Context(), connect.NewRequest(&reflejov1.CreateServerRequest{Spec: s})); err != nil {
		h.t.Fatal(err)
	}
	server := h.settled(s.GetId())
	if server.GetState() != "running" {
		h.t.Fatalf("server %s: %s (%s)", s.GetName(), server.GetState(), server.GetOperation().GetError())
	}
	return server
}

// settled waits until no operation is under way; nil when the server is gone.
func (h *host) settled(id string) *reflejov1.Server {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	stream, err := h.api.Servers.WatchServer(ctx, connect.NewRequest(&reflejov1.WatchServerRequest{Id: id, UntilSettled: true}))
	if err != nil {
		h.t.Fatal(err)
	}
	defer stream.Close()
	var last *reflejov1.WatchServerResponse
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := stream.Err(); connect.CodeOf(err) == connect.CodeNotFound {
		return nil
	} else if err != nil {
		h.t.Fatal(err)
	}
	if last.GetGone() {
		return nil
	}
	return last.GetServer()
}

// remove deletes a server and waits until it is gone.
func (h *host) remove(id string) {
	h.t.Helper()
	_, err := h.api.Servers.DeleteServer(h.t.Context(), connect.NewRequest(&reflejov1.DeleteServerRequest{Id: id}))
	if err != nil && connect.CodeOf(err) != connect.CodeNotFound {
		h.t.Fatal(err)
	}
	if err == nil {
		if s := h.settled(id); s != nil {
			h.t.Fatalf("server %s is still there: %s (%s)", id, s.GetState(), s.GetOperation().GetError())
		}
	}
}

// exec runs a program in a server; it fails the test if the program could not be run.
func (h *host) exec(id string, argv ...string) (code int32, out string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	stream := h.api.Servers.Exec(ctx)
	if err := stream.Send(&reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Start{Start: &reflejov1.ExecStart{Id: id, Argv: argv}}}); err != nil {
		_, err = stream.Receive()
		h.t.Fatal(err)
	}
	_ = stream.Send(&reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_StdinClosed{StdinClosed: true}})
	_ = stream.CloseRequest()
	defer stream.CloseResponse()
	var text strings.Builder
	for {
		m, err := stream.Receive()
		if err != nil {
			h.t.Fatalf("run %q: %v\n%s", argv, err, text.String())
		}
		switch p := m.GetPart().(type) {
		case *reflejov1.ExecResponse_Stdout:
			text.Write(p.Stdout)
		case *reflejov1.ExecResponse_Stderr:
			text.Write(p.Stderr)
		case *reflejov1.ExecResponse_ExitCode:
			return p.ExitCode, text.String()
		}
	}
}
