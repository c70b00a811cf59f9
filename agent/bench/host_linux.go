package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
)

const (
	hostName   = "alpha"
	otherName  = "beta"  // what servers are moved to
	clientName = "gamma" // where a client on the network is

	mebibyte = 1 << 20

	tinyDisk = 128 * mebibyte // of servers that only run a command
	bootDisk = 2 << 30        // of servers that boot Debian
)

// settings let the host promise more processors than it has: how fast servers are made is
// measured with more of them than there are cores.
const settings = `
overcommit {
  cpu = "100"
}
`

// host is a real agent on a test host, and its API.
type host struct {
	bed    *testbed.Bed // with all hosts that there may be
	tb     *testbed.Host
	api    *api.Client
	images images
	tiny   string // image ids
	debian string
}

// images are the files that reflejo's and LXD's images are made of.
type images struct {
	tiny   []byte // tar
	debian string // path of a tar.zst; "" where no benchmark boots it
}

// newHost makes the bed and imports the images that the wanted benchmarks need.
func newHost(ctx context.Context, cfg Config) (_ *host, err error) {
	c := testbed.Config{Name: cfg.Name, Dir: cfg.Dir, Bin: cfg.Bin, Hosts: []string{hostName, otherName, clientName}, ReserveMemory: "10%", AgentSettings: settings}
	whole, err := testbed.New(c)
	if err != nil {
		return nil, err
	}
	c.Hosts = []string{hostName}
	bed, err := testbed.New(c)
	if err != nil {
		return nil, err
	}
	h := &host{bed: whole}
	if err := whole.Down(ctx); err != nil { // what a killed run left
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.down(context.WithoutCancel(ctx)))
		}
	}()
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, err
	}
	if err := bed.Up(ctx); err != nil {
		return nil, err
	}
	if h.tb, err = bed.Host(hostName); err != nil {
		return nil, err
	}
	if h.api, err = bed.Client(hostName); err != nil {
		return nil, err
	}
	if h.images.tiny, err = tinyTar(); err != nil {
		return nil, err
	}
	if h.tiny, err = h.upload(ctx, "tiny", h.images.tiny); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(benchmarks(), func(b benchmark) bool { return b.debian && b.wanted(cfg.Only) }) {
		if h.images.debian, err = testbed.Debian.File(ctx); err != nil {
			return nil, err
		}
		if h.debian, err = bed.Import(ctx, testbed.Debian); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// others starts the other hosts of the bed, which most benchmarks do without.
func (h *host) others(ctx context.Context) (other, client *host, err error) {
	if err := h.bed.Up(ctx); err != nil {
		return nil, nil, err
	}
	for _, to := range []struct {
		name string
		host **host
	}{{otherName, &other}, {clientName, &client}} {
		o := &host{bed: h.bed}
		if o.tb, err = h.bed.Host(to.name); err == nil {
			o.api, err = h.bed.Client(to.name)
		}
		if err != nil {
			return nil, nil, err
		}
		*to.host = o
	}
	client.tiny, err = client.upload(ctx, "tiny", h.images.tiny)
	return other, client, err
}

// leave ends a host that was only needed for one benchmark.
func (h *host) leave(ctx context.Context) error {
	h.api.Close()
	return h.tb.Kill(context.WithoutCancel(ctx))
}

// down removes the host, and the others.
func (h *host) down(ctx context.Context) error {
	if h.api != nil {
		h.api.Close()
	}
	return h.bed.Down(ctx)
}

// reconnect drops the connections to an agent that has ended.
func (h *host) reconnect() (err error) {
	h.api.Close()
	h.api, err = h.bed.Client(h.tb.Name())
	return err
}

// upload makes an image of a tar.
func (h *host) upload(ctx context.Context, name string, text []byte) (id string, err error) {
	stream := h.api.Images.UploadImage(ctx)
	send := func(m *reflejov1.UploadImageRequest) {
		if err == nil {
			err = stream.Send(m)
		}
	}
	header := &reflejov1.UploadImageHeader{Name: name, Source: name + ".tar", SizeBytes: int64(len(text))}
	send(&reflejov1.UploadImageRequest{Part: &reflejov1.UploadImageRequest_Header{Header: header}})
	for len(text) > 0 {
		n := min(len(text), api.MaxChunk)
		send(&reflejov1.UploadImageRequest{Part: &reflejov1.UploadImageRequest_Data{Data: text[:n]}})
		text = text[n:]
	}
	answer, closeErr := stream.CloseAndReceive()
	if closeErr != nil { // why it did not take more, if it did not
		err = closeErr
	}
	if err != nil {
		return "", fmt.Errorf("upload image %s: %w", name, err)
	}
	return answer.Msg.GetImage().GetId(), nil
}

// tinySpec is a server that runs commands.
func (h *host) tinySpec(name string) *reflejov1.ServerSpec {
	return &reflejov1.ServerSpec{
		Id: uuid.NewString(), Name: name, Image: h.tiny, Power: "running",
		Cpu: &reflejov1.Cpu{MilliCores: 1000}, Memory: &reflejov1.Memory{Max: 16 * mebibyte}, Disk: &reflejov1.Disk{Size: tinyDisk},
	}
}

// debianSpec is a server that boots systemd.
func (h *host) debianSpec(name string) *reflejov1.ServerSpec {
	return &reflejov1.ServerSpec{
		Id: uuid.NewString(), Name: name, Image: h.debian, Power: "running",
		Cpu: &reflejov1.Cpu{MilliCores: 2000}, Memory: &reflejov1.Memory{Max: 512 * mebibyte}, Disk: &reflejov1.Disk{Size: bootDisk},
	}
}

// create makes a server and returns when nothing is left to do for it.
func (h *host) create(ctx context.Context, s *reflejov1.ServerSpec) error {
	if _, err := h.api.Servers.CreateServer(ctx, connect.NewRequest(&reflejov1.CreateServerRequest{Spec: s})); err != nil {
		return fmt.Errorf("create server %s: %w", s.GetName(), err)
	}
	return h.await(ctx, s, s.GetPower())
}

// update changes a server and returns when nothing is left to do for it.
func (h *host) update(ctx context.Context, s *reflejov1.ServerSpec) error {
	if _, err := h.api.Servers.UpdateServer(ctx, connect.NewRequest(&reflejov1.UpdateServerRequest{Spec: s})); err != nil {
		return fmt.Errorf("update server %s: %w", s.GetName(), err)
	}
	return h.await(ctx, s, s.GetPower())
}

func (h *host) await(ctx context.Context, s *reflejov1.ServerSpec, state string) error {
	server, err := h.settled(ctx, s.GetId())
	if err != nil {
		return fmt.Errorf("watch server %s: %w", s.GetName(), err)
	}
	if e := server.GetOperation().GetError(); e != "" || server.GetState() != state {
		return fmt.Errorf("server %s is %q, not %q: %s", s.GetName(), server.GetState(), state, e)
	}
	return nil
}

// settled waits until no operation is under way; nil when the server is gone.
func (h *host) settled(ctx context.Context, id string) (*reflejov1.Server, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := h.api.Servers.WatchServer(ctx, connect.NewRequest(&reflejov1.WatchServerRequest{Id: id, UntilSettled: true}))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var last *reflejov1.WatchServerResponse
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := stream.Err(); err != nil && connect.CodeOf(err) != connect.CodeNotFound {
		return nil, err
	}
	if last == nil || last.GetGone() {
		return nil, nil
	}
	return last.GetServer(), nil
}

// remove kills and deletes a server, and returns when it is gone.
func (h *host) remove(ctx context.Context, s *reflejov1.ServerSpec) error {
	if s.GetPower() == "running" {
		_, err := h.api.Servers.SetPower(ctx, connect.NewRequest(&reflejov1.SetPowerRequest{Id: s.GetId(), Action: reflejov1.SetPowerRequest_ACTION_KILL}))
		if err != nil && connect.CodeOf(err) != connect.CodeNotFound {
			return fmt.Errorf("kill server %s: %w", s.GetName(), err)
		}
	}
	_, err := h.api.Servers.DeleteServer(ctx, connect.NewRequest(&reflejov1.DeleteServerRequest{Id: s.GetId()}))
	if connect.CodeOf(err) == connect.CodeNotFound && err != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete server %s: %w", s.GetName(), err)
	}
	server, err := h.settled(ctx, s.GetId())
	if err == nil && server != nil {
		err = fmt.Errorf("it is still there: %s", server.GetOperation().GetError())
	}
	if err != nil {
		return fmt.Errorf("delete server %s: %w", s.GetName(), err)
	}
	return nil
}

// removeAll is remove for what a benchmark leaves, also when its time is over.
func (h *host) removeAll(ctx context.Context, specs ...*reflejov1.ServerSpec) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
	defer cancel()
	return together(len(specs), 8, func(i int) error { return h.remove(ctx, specs[i]) })
}

// exec runs a program in a server and returns what it printed. first is when the first of
// it arrived.
func (h *host) exec(ctx context.Context, id string, argv ...string) (out string, first time.Time, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := h.api.Servers.Exec(ctx)
	defer stream.CloseResponse()
	start := &reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Start{Start: &reflejov1.ExecStart{Id: id, Argv: argv}}}
	if err := stream.Send(start); err == nil { // else Receive says why not
		_ = stream.Send(&reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_StdinClosed{StdinClosed: true}})
	}
	_ = stream.CloseRequest()
	var text, errors bytes.Buffer
	for {
		m, err := stream.Receive()
		if err != nil {
			return "", first, fmt.Errorf("run %q: %w", argv, err)
		}
		switch p := m.GetPart().(type) {
		case *reflejov1.ExecResponse_Stdout:
			if first.IsZero() {
				first = time.Now()
			}
			text.Write(p.Stdout)
		case *reflejov1.ExecResponse_Stderr:
			errors.Write(p.Stderr)
		case *reflejov1.ExecResponse_ExitCode:
			if p.ExitCode != 0 {
				err = fmt.Errorf("run %q: exit code %d: %s", argv, p.ExitCode, strings.TrimSpace(errors.String()+text.String()))
			}
			return strings.TrimSpace(text.String()), first, err
		}
	}
}

// sh runs a script in a server.
func (h *host) sh(ctx context.Context, id, script string) (string, error) {
	out, _, err := h.exec(ctx, id, "/bin/sh", "-c", script)
	return out, err
}

// usage reads a server's counters.
func (h *host) usage(ctx context.Context, id string) (*reflejov1.ServerUsage, error) {
	answer, err := h.api.Servers.GetServer(ctx, connect.NewRequest(&reflejov1.GetServerRequest{Id: id, Usage: true}))
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	return answer.Msg.GetServer().GetUsage(), nil
}

// describe is the host as the agent sees it.
func (h *host) describe(ctx context.Context) (*reflejov1.Host, error) {
	answer, err := h.api.Hosts.GetHost(ctx, connect.NewRequest(&reflejov1.GetHostRequest{}))
	if err != nil {
		return nil, fmt.Errorf("describe host: %w", err)
	}
	return answer.Msg.GetHost(), nil
}

// together calls f for 0 … n-1, some at once. Of many errors it returns the first.
func together(n, atOnce int, f func(i int) error) error {
	slots, results := make(chan struct{}, atOnce), make(chan error)
	for i := range n {
		go func() {
			slots <- struct{}{}
			err := f(i)
			<-slots
			results <- err
		}()
	}
	var first error
	failed := 0
	for range n {
		if err := <-results; err != nil {
			failed++
			if first == nil {
				first = err
			}
		}
	}
	if failed > 1 {
		return fmt.Errorf("%w (and %d more)", first, failed-1)
	}
	return first
}
