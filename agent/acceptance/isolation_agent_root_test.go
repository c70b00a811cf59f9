//go:build linux && root && crashpoints

package acceptance

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// The agent's own files are root's; all that it must not do is write to them or wait.
var hostile = map[string]string{
	"absolute links": `for f in resolv.conf hosts hostname timezone localtime machine-id; do rm -rf /etc/$f; ln -s OUTSIDE /etc/$f; done`,
	"relative links": `for f in resolv.conf hosts hostname timezone localtime machine-id; do rm -rf /etc/$f; ln -s ../../../../../../../..OUTSIDE /etc/$f; done`,
	"magic links":    `for f in resolv.conf hosts hostname timezone; do rm -rf /etc/$f; ln -s /proc/1/rootOUTSIDE /etc/$f; done`,
	"loops of links": `for f in resolv.conf hosts hostname timezone; do rm -rf /etc/$f; ln -s $f /etc/$f; done`,
	"pipes":          `for f in resolv.conf hosts hostname timezone localtime machine-id; do rm -rf /etc/$f; busybox mkfifo /etc/$f; done`,
	"pipes of users": `for f in passwd group; do rm -rf /etc/$f; busybox mkfifo /etc/$f; done`,
	"folders":        `for f in resolv.conf hosts hostname timezone; do rm -rf /etc/$f; mkdir -p /etc/$f/x; done`,
	"huge files":     `for f in resolv.conf hosts hostname timezone; do rm -rf /etc/$f; dd if=/dev/zero of=/etc/$f bs=1 count=1 seek=2G; done`,
	"huge users":     `for f in passwd group; do dd if=/dev/zero of=/etc/$f bs=1 count=1 seek=2G; done`,
	"linked folders": `rm -rf /etc; ln -s OUTSIDE.d /etc; mkdir -p /var/lib; rm -rf /var/lib/cloud; ln -s / /var/lib/cloud`,
	"folders of mounts": `mkdir -p /old; for d in proc sys dev run tmp; do rm -rf /$d; ln -s OUTSIDE.d /$d; done; mount --bind / /old 2>/dev/null;
		for d in proc sys dev run tmp; do rm -rf /old/$d; ln -s OUTSIDE.d /old/$d; done; true`,
}

// deceiveAgent plants what the agent, which is root on the host, might follow, write
// through or wait for when it prepares the next start and when it runs commands.
func (s *siege) deceiveAgent() {
	image := s.imageOf(s.mallory)
	for name, plant := range hostile {
		s.try(name, func(t *testing.T) {
			outside := filepath.Join(s.handle().Dir(), "precious-"+uuid.NewString())
			if err := os.WriteFile(outside, []byte(secret), 0o666); err != nil {
				t.Fatal(err)
			}
			// Links inside lead to directories of the same name, so that following them looks right.
			want := spec("victim-"+uuid.NewString()[:8], image)
			want.Hostname = "victim"
			s.create(want)
			defer s.remove(want.GetId())
			if code, out := s.exec(want.GetId(), "sh", "-c", strings.ReplaceAll(plant, "OUTSIDE", outside)); code != 0 {
				t.Fatalf("the attack is broken: exit %d: %s", code, out)
			}
			s.lookUp(want.GetId())
			s.stop(want.GetId())
			begun := time.Now()
			if err := s.ask(want.GetId(), reflejov1.SetPowerRequest_ACTION_START); err != nil {
				t.Fatal(err)
			}
			server := s.settled(want.GetId()) // fails if the agent hangs
			t.Logf("%s after %v %s", server.GetState(), time.Since(begun).Round(time.Millisecond), server.GetOperation().GetError())
			if now, err := os.ReadFile(outside); err != nil || string(now) != secret {
				t.Errorf("a file of the host was changed: %q, %v", now, err)
			}
			if found, _ := filepath.Glob(outside + "?*"); len(found) > 0 {
				t.Errorf("files were made on the host: %v", found)
			}
		})
	}
	s.try("directory of a command", func(t *testing.T) { s.workingDirectory() })
}

const secret = "the host's\n"

func (s *siege) imageOf(id string) string {
	s.t.Helper()
	answer, err := s.api.Servers.GetServer(s.t.Context(), connect.NewRequest(&reflejov1.GetServerRequest{Id: id}))
	if err != nil {
		s.t.Fatal(err)
	}
	return answer.Msg.GetServer().GetSpec().GetImage()
}

// lookUp runs a command as a user by name: the agent reads the server's own list of users.
// Whether it runs is the server's affair, but it is refused or ends when its caller goes.
func (s *siege) lookUp(id string) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	stream := s.api.Servers.Exec(ctx)
	_ = stream.Send(&reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Start{Start: &reflejov1.ExecStart{Id: id, User: "nobody", Argv: []string{"true"}}}})
	_ = stream.CloseRequest()
	for {
		m, err := stream.Receive()
		if err != nil {
			s.t.Log("a command as another user:", err)
			return
		}
		if _, ok := m.GetPart().(*reflejov1.ExecResponse_ExitCode); ok {
			return
		}
	}
}

// workingDirectory makes a command's directory a link to a descriptor that a runtime might
// leave open: from a directory of the host all of it could be reached.
func (s *siege) workingDirectory() {
	t := s.t
	outside := filepath.Join(s.handle().Dir(), "precious-"+uuid.NewString())
	if err := os.WriteFile(outside, []byte(secret), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"3", "4", "5", "6", "7", "8", "9", "10", "11", "12"} {
		s.allowed("link", "ln -sfn /proc/self/fd/"+n+" /dir")
		stream := s.api.Servers.Exec(t.Context())
		_ = stream.Send(&reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Start{Start: &reflejov1.ExecStart{Id: s.mallory, Dir: "/dir",
			Argv: []string{"sh", "-c", "cat ../../../../../../../.." + outside}}}})
		_ = stream.CloseRequest()
		for {
			m, err := stream.Receive()
			if err != nil {
				break
			}
			if bytes.Contains(m.GetStdout(), []byte(secret)) {
				t.Errorf("a command reads a file of the host by way of descriptor %s", n)
			}
		}
	}
}
