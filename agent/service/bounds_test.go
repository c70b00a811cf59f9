package service

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

func spec(change func(*reflejov1.ServerSpec)) proto.Message {
	s := &reflejov1.ServerSpec{}
	change(s)
	return &reflejov1.CreateServerRequest{Spec: s}
}

func exec(argv ...string) proto.Message {
	return &reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Start{Start: &reflejov1.ExecStart{Argv: argv}}}
}

func stdin(n int) proto.Message {
	return &reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Stdin{Stdin: make([]byte, n)}}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	many := map[string]string{}
	for i := range maxElements {
		many[fmt.Sprint(i)] = ""
	}
	more := map[string]string{"one": "more"}
	for k, v := range many {
		more[k] = v
	}
	long := func(n int) string { return strings.Repeat("x", n) }
	for name, c := range map[string]struct {
		message proto.Message
		field   string // "" means accepted
	}{
		"empty":               {&reflejov1.CreateServerRequest{}, ""},
		"long string":         {spec(func(s *reflejov1.ServerSpec) { s.Name = long(maxString) }), ""},
		"too long string":     {spec(func(s *reflejov1.ServerSpec) { s.Name = long(maxString + 1) }), "spec.name"},
		"long first boot":     {spec(func(s *reflejov1.ServerSpec) { s.FirstBoot = long(512 << 10) }), ""},
		"too long first boot": {spec(func(s *reflejov1.ServerSpec) { s.FirstBoot = long(512<<10 + 1) }), "spec.first_boot"},
		"zero byte":           {spec(func(s *reflejov1.ServerSpec) { s.Name = "a\x00b" }), "spec.name"},
		"many labels":         {spec(func(s *reflejov1.ServerSpec) { s.Labels = many }), ""},
		"too many labels":     {spec(func(s *reflejov1.ServerSpec) { s.Labels = more }), "spec.labels"},
		"too long label":      {spec(func(s *reflejov1.ServerSpec) { s.Labels = map[string]string{"a": long(maxString + 1)} }), "spec.labels.a"},
		"too long label key":  {spec(func(s *reflejov1.ServerSpec) { s.Labels = map[string]string{long(maxString + 1): ""} }), "spec.labels"},
		"many keep rules": {spec(func(s *reflejov1.ServerSpec) {
			s.SnapshotPolicy = &reflejov1.SnapshotPolicy{Keep: &reflejov1.Keep{Last: 1 << 31}}
		}), "spec.snapshot_policy.keep.last"},
		"too many occasions": {spec(func(s *reflejov1.ServerSpec) {
			s.SnapshotPolicy = &reflejov1.SnapshotPolicy{On: make([]string, maxElements+1)}
		}), "spec.snapshot_policy.on"},
		"too long target":      {&reflejov1.CreateBackupRequest{Target: long(maxString + 1)}, "target"},
		"too long description": {&reflejov1.CreateSnapshotRequest{Description: long(maxString + 1)}, "description"},
		"too many words":       {&reflejov1.UpdateSnapshotRequest{Labels: more}, "labels"},
		"negative bytes":       {&reflejov1.PrepareMigrationRequest{SnapshotBytes: -1}, "snapshot_bytes"},
		"too many interfaces":  {&reflejov1.PrepareMigrationRequest{Server: &reflejov1.Server{Messages: make([]*reflejov1.Message, maxElements+1)}}, "server.messages"},
		"negative bandwidth":   {&reflejov1.MigrateServerRequest{Settings: &reflejov1.MigrationSettings{Bandwidth: -1}}, "settings.bandwidth"},
		"long downtime":        {&reflejov1.MigrateServerRequest{Settings: &reflejov1.MigrationSettings{MaxDowntime: durationpb.New(25 * time.Hour)}}, "settings.max_downtime"},
		"too long ticket":      {&reflejov1.MigrateServerRequest{Ticket: long(maxString + 1)}, "ticket"},
		"zero byte in backup":  {&reflejov1.ImportBackupRequest{Backup: "a\x00"}, "backup"},
		"too many servers":     {spec(func(s *reflejov1.ServerSpec) { s.DnsServers = make([]string, maxElements+1) }), "spec.dns_servers"},
		"bad element":          {spec(func(s *reflejov1.ServerSpec) { s.DnsServers = []string{"ok", long(maxString + 1)} }), "spec.dns_servers.1"},
		"negative":             {spec(func(s *reflejov1.ServerSpec) { s.Memory = &reflejov1.Memory{Max: -1} }), "spec.memory.max"},
		"inside a map":         {spec(func(s *reflejov1.ServerSpec) { s.Network = map[string]*reflejov1.Nic{"eth0": {Ingress: -1}} }), "spec.network.eth0.ingress"},
		"large unsigned":       {spec(func(s *reflejov1.ServerSpec) { s.Network = nic(1 << 31) }), "spec.network.eth0.publish.p.port"},
		"negative time":        {spec(func(s *reflejov1.ServerSpec) { s.ShutdownTimeout = durationpb.New(-1) }), "spec.shutdown_timeout"},
		"long time":            {spec(func(s *reflejov1.ServerSpec) { s.ShutdownTimeout = durationpb.New(25 * time.Hour) }), "spec.shutdown_timeout"},
		"broken time":          {spec(func(s *reflejov1.ServerSpec) { s.ShutdownTimeout = &durationpb.Duration{Nanos: -5e8, Seconds: 1} }), "spec.shutdown_timeout"},
		"long argument":        {exec("sh", long(128<<10)), ""},
		"too long argument":    {exec("sh", long(128<<10+1)), "start.argv.1"},
		"too many arguments":   {exec(make([]string, 4097)...), "start.argv"},
		"full chunk of input":  {stdin(api.MaxExecChunk), ""},
		"oversize chunk input": {stdin(api.MaxExecChunk + 1), "stdin"},
	} {
		err := checkBounds(c.message)
		if (c.field == "") != (err == nil) || fault.FieldOf(err) != c.field {
			t.Errorf("%s: got %v, want blame on %q", name, err, c.field)
		}
	}
}

func nic(port uint32) map[string]*reflejov1.Nic {
	return map[string]*reflejov1.Nic{"eth0": {Publish: map[string]*reflejov1.Publish{"p": {Port: port}}}}
}

func TestObjectOf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		message proto.Message
		want    Entry
	}{
		{spec(func(s *reflejov1.ServerSpec) { s.Id, s.Name, s.FirstBoot = "1", "web", "secret" }), Entry{ID: "1", Name: "web"}},
		{&reflejov1.DeleteServerRequest{Id: "web"}, Entry{ID: "web"}},
		{&reflejov1.SetPowerRequest{Id: "web", Action: reflejov1.SetPowerRequest_ACTION_KILL}, Entry{ID: "web", Detail: "kill"}},
		{exec("mysql", "--password=secret"), Entry{Detail: "mysql"}},
		{&reflejov1.ImportImageRequest{Name: "debian", Source: "oci://x/y"}, Entry{Name: "debian", Detail: "oci://x/y"}},
		{&reflejov1.UploadImageRequest{Part: &reflejov1.UploadImageRequest_Header{Header: &reflejov1.UploadImageHeader{Name: "debian"}}}, Entry{Name: "debian"}},
		{&reflejov1.CreateSnapshotRequest{Id: "1", Name: "x", Server: "web"}, Entry{ID: "1", Name: "x", Detail: "of server web"}},
		{&reflejov1.RestoreServerRequest{Id: "1", Server: "web", Snapshot: "2"}, Entry{ID: "web", Detail: "snapshot 2, safety snapshot 1"}},
		{&reflejov1.CreateBackupRequest{Id: "1", Snapshot: "2", Target: "host:b"}, Entry{ID: "1", Detail: "snapshot 2 to host:b"}},
		{&reflejov1.ImportBackupRequest{Id: "1", Backup: "2", Target: "host:b"}, Entry{ID: "1", Detail: "backup 2 of host:b"}},
		{&reflejov1.PrepareMigrationRequest{Source: "alpha", Server: &reflejov1.Server{Spec: &reflejov1.ServerSpec{Id: "1", Name: "web"}}}, Entry{ID: "1", Name: "web", Detail: "from host alpha"}},
		{&reflejov1.MigrateServerRequest{Id: "1", Target: "beta", Ticket: "secret"}, Entry{ID: "1", Detail: "to host beta"}},
		{&reflejov1.RecoverServerRequest{Spec: &reflejov1.ServerSpec{Id: "1", Name: "web"}, LostHost: "alpha"}, Entry{ID: "1", Name: "web", Detail: "of lost host alpha"}},
		{&reflejov1.ConsoleRequest{Part: &reflejov1.ConsoleRequest_Id{Id: "web"}}, Entry{ID: "web"}},
		{&reflejov1.DeleteServerRequest{Id: strings.Repeat("x", 1000)}, Entry{ID: strings.Repeat("x", 256)}},
	} {
		if got := objectOf(c.message); got != c.want {
			t.Errorf("%T: got %+v, want %+v", c.message, got, c.want)
		}
	}
}
