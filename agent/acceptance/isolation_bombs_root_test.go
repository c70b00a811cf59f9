//go:build linux && root && crashpoints

package acceptance

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// bombs use up processes, memory and disk at once.
func (s *siege) bombs() {
	s.try("fork bomb", func(t *testing.T) {
		c := s.start(s.mallory, "sh", "-c", "echo begun; b() { b | b & }; b; wait; sleep 1000000")
		c.line()
		for range 5 { // while it goes on
			s.unharmed()
		}
		s.kill(s.mallory)
		s.run(s.mallory)
		s.allowed("it is over", "true")
		c.kill()
	})
	s.try("memory bomb", func(t *testing.T) {
		pid := s.pid1(s.alice)
		_, out := s.exec(s.mallory, "sh", "-c", attack+" take memory 4096; echo status $?")
		if !strings.Contains(out, "status 137") {
			t.Errorf("a program took more memory than its server has: %s", out)
		}
		if now := s.pid1(s.alice); now != pid {
			t.Errorf("the neighbour's process 1 was %d, is %d", pid, now)
		}
	})
	s.try("full disk", func(t *testing.T) {
		if code, out := s.exec(s.mallory, "sh", "-c", "busybox fallocate -l 9G /a; dd if=/dev/zero of=/b bs=1M count=2000"); code == 0 {
			t.Errorf("more was written than the disk has: %s", out)
		}
		if code, out := s.exec(s.alice, "sh", "-c", "dd if=/dev/zero of=/x bs=1M count=8 && sync && rm /x"); code != 0 {
			t.Errorf("the neighbour cannot write: exit %d: %s", code, out)
		}
		s.stop(s.mallory) // and it starts again: the agent writes what it has to
		s.run(s.mallory)
		s.allowed("cleaning up", "rm -f /a /b")
	})
	s.try("reboot", func(t *testing.T) {
		c := s.start(s.mallory, attack, "call", "reboot")
		defer c.kill()
		<-c.code // with its server
		c.code <- 0
		s.unharmed()
		s.run(s.mallory)
		s.allowed("it is up", "true")
	})
}

// ask asks for a change of power.
func (s *siege) ask(id string, a reflejov1.SetPowerRequest_Action) error {
	_, err := s.api.Servers.SetPower(s.t.Context(), connect.NewRequest(&reflejov1.SetPowerRequest{Id: id, Action: a}))
	return err
}

func (s *siege) stop(id string) {
	s.t.Helper()
	s.power(id, reflejov1.SetPowerRequest_ACTION_STOP, "stopped")
}
func (s *siege) kill(id string) {
	s.t.Helper()
	s.power(id, reflejov1.SetPowerRequest_ACTION_KILL, "stopped")
}
func (s *siege) run(id string) {
	s.t.Helper()
	s.power(id, reflejov1.SetPowerRequest_ACTION_START, "running")
}

func (s *siege) power(id string, a reflejov1.SetPowerRequest_Action, want string) {
	s.t.Helper()
	server := s.settled(id)
	if server.GetState() != want {
		if err := s.ask(id, a); err != nil {
			s.t.Fatal(err)
		}
		server = s.settled(id)
	}
	if server.GetState() != want {
		s.t.Fatalf("server is %s, want %s: %s", server.GetState(), want, server.GetOperation().GetError())
	}
}
