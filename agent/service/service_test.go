package service_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
	"github.com/reflejo/terraform-provider-reflejo/agent/service"
	"github.com/reflejo/terraform-provider-reflejo/agent/service/servicetest"
)

const webID = "11111111-1111-4111-8111-111111111111"

// withWeb is a host with an image and a running server.
func withWeb(t *testing.T) (*servicetest.Host, *servicetest.Site) {
	t.Helper()
	h := servicetest.NewHost("alpha")
	h.AddImage("debian")
	site := servicetest.Start(t, h)
	create(t, site.Client(t, pki.RoleOperator))
	return h, site
}

func create(t *testing.T, c *api.Client) *reflejov1.Server {
	t.Helper()
	res, err := c.Servers.CreateServer(t.Context(), connect.NewRequest(&reflejov1.CreateServerRequest{
		Spec: &reflejov1.ServerSpec{Id: webID, Name: "web", Image: "debian", FirstBoot: "#!/bin/sh\nsecret", FirstBootVersion: "1"},
	}))
	if err != nil {
		t.Fatal(err)
	}
	return res.Msg.GetServer()
}

func getServer(ctx context.Context, c *api.Client, id string) (*reflejov1.Server, error) {
	res, err := c.Servers.GetServer(ctx, connect.NewRequest(&reflejov1.GetServerRequest{Id: id, Usage: true}))
	if err != nil {
		return nil, api.ErrorOf(err)
	}
	return res.Msg.GetServer(), nil
}

func TestServers(t *testing.T) {
	t.Parallel()
	_, site := withWeb(t)
	c := site.Client(t, pki.RoleOperator)
	s, err := getServer(t.Context(), c, "web")
	if err != nil {
		t.Fatal(err)
	}
	if s.GetHost() != "alpha" || s.GetImageName() != "debian" || s.GetUsage().GetTasks() != 7 || s.GetState() != "running" {
		t.Errorf("got %v", s)
	}
	if s.GetSpec().GetFirstBoot() != "" || s.GetSpec().GetFirstBootVersion() != "1" {
		t.Error("first-boot data came back, or its version did not")
	}
	power := &reflejov1.SetPowerRequest{Id: "web", Action: reflejov1.SetPowerRequest_ACTION_STOP}
	if _, err := c.Servers.SetPower(t.Context(), connect.NewRequest(power)); err != nil {
		t.Fatal(err)
	}
	if s, err = getServer(t.Context(), c, webID); err != nil || s.GetState() != "stopped" || s.GetUsage() != nil {
		t.Errorf("got %v, %v", s, err)
	}
	if _, err := c.Servers.DeleteServer(t.Context(), connect.NewRequest(&reflejov1.DeleteServerRequest{Id: webID})); err != nil {
		t.Fatal(err)
	}
	if _, err := getServer(t.Context(), c, webID); !fault.Is(err, fault.NotFound) {
		t.Errorf("got %v", err)
	}
}

func TestErrorsArriveWithKindAndField(t *testing.T) {
	t.Parallel()
	_, site := withWeb(t)
	c := site.Client(t, pki.RoleOperator)
	for field, spec := range map[string]*reflejov1.ServerSpec{
		"name":            {Id: webID, Name: "No!", Image: "debian"},
		"spec.memory.max": {Id: webID, Name: "web", Memory: &reflejov1.Memory{Max: -1}},
	} {
		_, err := c.Servers.CreateServer(t.Context(), connect.NewRequest(&reflejov1.CreateServerRequest{Spec: spec}))
		if err = api.ErrorOf(err); !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != field {
			t.Errorf("got %v that blames %q, want %q", err, fault.FieldOf(err), field)
		}
	}
}

func TestWhoMayDoWhat(t *testing.T) {
	t.Parallel()
	h, site := withWeb(t)
	monitor, agent := site.Client(t, pki.RoleMonitor), site.Client(t, pki.RoleAgent)
	if _, err := getServer(t.Context(), monitor, "web"); err != nil {
		t.Errorf("a monitor can't look: %v", err)
	}
	for name, call := range map[string]func() error{
		"monitor deletes": func() error {
			_, err := monitor.Servers.DeleteServer(t.Context(), connect.NewRequest(&reflejov1.DeleteServerRequest{Id: "web"}))
			return err
		},
		"monitor runs a program": func() error { _, err := run(t.Context(), monitor, "echo", "x"); return err },
		"monitor reads a console": func() error {
			stream, err := monitor.Servers.ReadConsoleLog(t.Context(), connect.NewRequest(&reflejov1.ReadConsoleLogRequest{Id: "web"}))
			if err == nil {
				stream.Receive()
				err = stream.Err()
			}
			return err
		},
		"monitor uploads": func() error {
			stream := monitor.Images.UploadImage(t.Context())
			stream.Send(&reflejov1.UploadImageRequest{})
			_, err := stream.CloseAndReceive()
			return err
		},
		"agent lists": func() error {
			_, err := agent.Servers.ListServers(t.Context(), connect.NewRequest(&reflejov1.ListServersRequest{}))
			return err
		},
	} {
		if err := api.ErrorOf(call()); !fault.Is(err, fault.Denied) {
			t.Errorf("%s: got %v, want denied", name, err)
		}
	}
	if _, err := h.Get("web"); err != nil {
		t.Errorf("the server is gone: %v", err)
	}
	log, err := os.ReadFile(filepath.Join(site.Dir, "audit.log"))
	if err != nil || !strings.Contains(string(log), `"who":"reflejo://monitor/tester"`) || !strings.Contains(string(log), `"outcome":"permission_denied"`) {
		t.Errorf("the denied deletion is not in the audit log: %s, %v", log, err)
	}
	if strings.Contains(string(log), "secret") {
		t.Error("a secret is in the audit log")
	}
}

func TestWrongCertificates(t *testing.T) {
	t.Parallel()
	_, site := withWeb(t)
	operator := pki.Identity{Role: pki.RoleOperator, Name: "x"}
	other, err := pki.NewCA("other", 0)
	if err != nil {
		t.Fatal(err)
	}
	strange, err := other.Issue(operator, pki.Options{})
	if err != nil {
		t.Fatal(err)
	}
	// The stranger trusts the right authority, so it is the server that has to refuse.
	pair, err := tls.X509KeyPair(strange.Cert, strange.Key)
	if err != nil {
		t.Fatal(err)
	}
	stranger := site.Credentials(t, operator, pki.Options{})()
	stranger.Certificate = pair
	expired := site.Credentials(t, operator, pki.Options{NotBefore: time.Now().Add(-time.Hour), Life: time.Nanosecond})
	// With TLS 1.3 the refusal comes after the handshake, and may be lost with the connection.
	_, err = getServer(t.Context(), site.Dial(t, func() pki.Credentials { return stranger }), "web")
	if !fault.Is(err, fault.Denied) && !fault.Is(err, fault.Unavailable) {
		t.Errorf("another authority: got %v", err)
	}
	if _, err := getServer(t.Context(), site.Dial(t, expired), "web"); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "renew") {
		t.Errorf("expired: got %v", err)
	}
	// A client that does not look at its own certificate is refused by the agent.
	careless := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{expired().Certificate}, RootCAs: expired().CAs, ServerName: "127.0.0.1",
	}}}
	if res, err := careless.Get("https://" + site.Address + service.MetricsPath); err == nil {
		res.Body.Close()
		t.Errorf("an expired certificate was accepted: %s", res.Status)
	}
	wrong, err := api.Dial(api.Config{Host: "beta", Address: site.Address, Credentials: site.Credentials(t, operator, pki.Options{})})
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.Close()
	if _, err := getServer(t.Context(), wrong, "web"); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "want reflejo://agent/beta") {
		t.Errorf("another host answered for beta: %v", err)
	}
	gone, err := api.Dial(api.Config{Host: "alpha", Address: "127.0.0.1:1", Credentials: site.Credentials(t, operator, pki.Options{})})
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	if _, err := getServer(t.Context(), gone, "web"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("nobody listens: got %v", err)
	}
}

// plain is a client that knows nothing of Connect, over HTTP/1.1.
func plain(t *testing.T, site *servicetest.Site, role pki.Role) *http.Client {
	t.Helper()
	creds := site.Credentials(t, pki.Identity{Role: role, Name: "curl"}, pki.Options{})
	transport := &http.Transport{TLSClientConfig: pki.ClientTLS(creds, "", site.Address, "http/1.1")}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestPlainJSON(t *testing.T) {
	t.Parallel()
	_, site := withWeb(t)
	post := func(role pki.Role, method, body string) (int, map[string]any) {
		t.Helper()
		res, err := plain(t, site, role).Post("https://"+site.Address+"/reflejo.v1.ServerService/"+method, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var answer map[string]any
		if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, answer
	}
	status, answer := post(pki.RoleMonitor, "GetServer", `{"id":"web"}`)
	if server, _ := answer["server"].(map[string]any); status != http.StatusOK || server["state"] != "running" {
		t.Errorf("got %d, %v", status, answer)
	}
	if status, answer = post(pki.RoleMonitor, "DeleteServer", `{"id":"web"}`); status != http.StatusForbidden || answer["code"] != "permission_denied" {
		t.Errorf("got %d, %v", status, answer)
	}
	if status, answer = post(pki.RoleOperator, "GetServer", `{"id":"nobody"}`); status != http.StatusNotFound || answer["code"] != "not_found" {
		t.Errorf("got %d, %v", status, answer)
	}
	if status, answer = post(pki.RoleOperator, "GetServer", `{"id":`); status != http.StatusBadRequest {
		t.Errorf("got %d, %v", status, answer)
	}
	big := `{"id":"` + strings.Repeat("x", 2*api.MaxRequest) + `"}`
	if status, answer = post(pki.RoleOperator, "GetServer", big); status == http.StatusOK || answer["code"] != "resource_exhausted" {
		t.Errorf("an oversize request: got %d, %v", status, answer)
	}
}

func TestMetricsAndStrangePaths(t *testing.T) {
	t.Parallel()
	_, site := withWeb(t)
	get := func(role pki.Role, path string) (int, string) {
		t.Helper()
		res, err := plain(t, site, role).Get("https://" + site.Address + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	if status, body := get(pki.RoleMonitor, service.MetricsPath); status != http.StatusOK || !strings.Contains(body, `reflejo_requests_total{code="ok",procedure="ServerService/CreateServer"} 1`) {
		t.Errorf("got %d:\n%s", status, body)
	}
	if status, _ := get(pki.RoleAgent, service.MetricsPath); status != http.StatusForbidden {
		t.Errorf("an agent reads metrics: %d", status)
	}
	for _, path := range []string{"/", "/debug/pprof/", "/reflejo.v1.ServerService/", "/metrics/", "//metrics"} {
		if status, _ := get(pki.RoleOperator, path); status != http.StatusNotFound {
			t.Errorf("%s: got %d", path, status)
		}
	}
}

func TestPanicIsAnAnswer(t *testing.T) {
	t.Parallel()
	h, site := withWeb(t)
	c := site.Client(t, pki.RoleOperator)
	h.PanicNext()
	if _, err := getServer(t.Context(), c, "web"); !fault.Is(err, fault.Internal) || strings.Contains(err.Error(), "a bug") {
		t.Errorf("got %v", err)
	}
	if _, err := c.Servers.ListServers(t.Context(), connect.NewRequest(&reflejov1.ListServersRequest{})); err != nil {
		t.Errorf("the agent did not survive: %v", err)
	}
}

func TestHostAndNetworks(t *testing.T) {
	t.Parallel()
	_, site := withWeb(t)
	c := site.Client(t, pki.RoleOperator)
	host, err := c.Hosts.GetHost(t.Context(), connect.NewRequest(&reflejov1.GetHostRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if h := host.Msg.GetHost(); h.GetServers() != 1 || h.GetRunningServers() != 1 || h.GetFree().GetMilliCores() != 2500 ||
		h.GetCertificateName() != "reflejo://operator/tester" || len(h.GetImages()) != 1 || !h.GetCertificateExpiresAt().AsTime().After(time.Now()) {
		t.Errorf("got %v", h)
	}
	put := &reflejov1.PutNetworkRequest{Spec: &reflejov1.NetworkSpec{
		Id: webID, Name: "app", Cidr: "10.77.0.0/24", Members: []*reflejov1.NetworkMember{{Host: "alpha"}},
	}}
	if _, err := c.Networks.PutNetwork(t.Context(), connect.NewRequest(put)); err != nil {
		t.Fatal(err)
	}
	list, err := c.Networks.ListNetworks(t.Context(), connect.NewRequest(&reflejov1.ListNetworksRequest{}))
	if err != nil || len(list.Msg.GetNetworks()) != 2 || list.Msg.GetNetworks()[0].GetGateway() != "10.77.0.1" {
		t.Errorf("got %v, %v", list, err)
	}
	if _, err := c.Networks.DeleteNetwork(t.Context(), connect.NewRequest(&reflejov1.DeleteNetworkRequest{Id: "app"})); err != nil {
		t.Fatal(err)
	}
	_, err = c.Networks.GetNetwork(t.Context(), connect.NewRequest(&reflejov1.GetNetworkRequest{Id: "app"}))
	if !fault.Is(api.ErrorOf(err), fault.NotFound) {
		t.Errorf("got %v", err)
	}
}

func TestImages(t *testing.T) {
	t.Parallel()
	_, site := withWeb(t)
	c := site.Client(t, pki.RoleOperator)
	imports, err := c.Images.ImportImage(t.Context(), connect.NewRequest(&reflejov1.ImportImageRequest{Name: "alpine", Source: "oci://x/alpine"}))
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	var image *reflejov1.Image
	for imports.Receive() {
		if p := imports.Msg().GetProgress(); p != nil {
			steps = append(steps, p.GetStep())
		}
		image = imports.Msg().GetImage()
	}
	if imports.Err() != nil || image.GetName() != "alpine" || strings.Join(steps, " ") != "downloading unpacking" {
		t.Errorf("got %v, %v, %v", image, steps, imports.Err())
	}
	content := bytes.Repeat([]byte("tar"), 1<<20)
	if image, err = uploadAll(t.Context(), c, "mine", content); err != nil || image.GetSource() != "upload:mine.tar" {
		t.Errorf("got %v, %v", image, err)
	}
	// An image that is there: the agent answers without reading, and the client still gets the answer.
	if again, err := uploadAll(t.Context(), c, "mine", content); err != nil || again.GetId() != image.GetId() {
		t.Errorf("got %v, %v", again, err)
	}
	list, err := c.Images.ListImages(t.Context(), connect.NewRequest(&reflejov1.ListImagesRequest{}))
	if err != nil || len(list.Msg.GetImages()) != 3 || list.Msg.GetImages()[1].GetServers() != 1 {
		t.Errorf("got %v, %v", list, err)
	}
}

func uploadAll(ctx context.Context, c *api.Client, name string, content []byte) (*reflejov1.Image, error) {
	stream := c.Images.UploadImage(ctx)
	header := &reflejov1.UploadImageHeader{Name: name, Source: "upload:" + name + ".tar", SizeBytes: int64(len(content))}
	err := stream.Send(&reflejov1.UploadImageRequest{Part: &reflejov1.UploadImageRequest_Header{Header: header}})
	for err == nil && len(content) > 0 {
		n := min(len(content), api.MaxChunk)
		err = stream.Send(&reflejov1.UploadImageRequest{Part: &reflejov1.UploadImageRequest_Data{Data: content[:n]}})
		content = content[n:]
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	res, err := stream.CloseAndReceive()
	if err != nil {
		return nil, err
	}
	return res.Msg.GetImage(), nil
}
