package service

import (
	"context"
	"time"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Host knows what the agent runs on.
type Host interface {
	// Facts is what does not change while the agent runs.
	Facts() Facts
	// Pool describes the disk pool as it is now.
	Pool(ctx context.Context) (Pool, error)
	// Conditions is what an operator should know now, worst first.
	Conditions(ctx context.Context) []Condition
}

// Facts describe a host.
type Facts struct {
	Name            string
	Version         string // of the agent
	Kernel          string
	CgroupMode      string // "unified", "hybrid" or "legacy"
	Architecture    string // GOARCH
	Started         time.Time
	UnderlayAddress string
	Endpoint        string // address and port for other agents; without an address that of the API
}

// Pool describes the disk pool.
type Pool struct {
	Path       string
	FileSystem string
	Embedded   bool
	Size       int64 // bytes
	Used       int64 // bytes
}

// Severity says how bad a condition is.
type Severity string

// The severities.
const (
	SeverityInfo    Severity = "info"
	SeverityWarning Severity = "warning"
	SeverityError   Severity = "error"
)

// Condition is something an operator should know.
type Condition struct {
	Type     string // a stable word, "PoolIsAFile"
	Severity Severity
	Message  string // what is there and what to do
	Since    time.Time
}

var severities = map[Severity]reflejov1.Condition_Severity{
	SeverityInfo:    reflejov1.Condition_SEVERITY_INFO,
	SeverityWarning: reflejov1.Condition_SEVERITY_WARNING,
	SeverityError:   reflejov1.Condition_SEVERITY_ERROR,
}

type hostHandler struct{ s *Service }

func (h *hostHandler) GetHost(ctx context.Context, _ *connect.Request[reflejov1.GetHostRequest]) (*connect.Response[reflejov1.GetHostResponse], error) {
	pool, err := h.s.cfg.Host.Pool(ctx)
	if err != nil {
		return nil, err
	}
	facts := h.s.cfg.Host.Facts()
	capacity, promised, free := h.s.cfg.Views.Resources()
	host := &reflejov1.Host{
		Name:            facts.Name,
		Version:         facts.Version,
		Kernel:          facts.Kernel,
		CgroupMode:      facts.CgroupMode,
		Architecture:    facts.Architecture,
		StartedAt:       timestamp(facts.Started),
		UnderlayAddress: facts.UnderlayAddress,
		Endpoint:        facts.Endpoint,
		Capacity:        resourcesToProto(capacity),
		Promised:        resourcesToProto(promised),
		Free:            resourcesToProto(free),
		Conditions: convert(h.s.cfg.Host.Conditions(ctx), func(c Condition) *reflejov1.Condition {
			return &reflejov1.Condition{Type: c.Type, Severity: severities[c.Severity], Message: c.Message, Since: timestamp(c.Since)}
		}),
		Pool:                 &reflejov1.Pool{Path: pool.Path, FileSystem: pool.FileSystem, Embedded: pool.Embedded, SizeBytes: pool.Size, UsedBytes: pool.Used},
		CertificateName:      callerOf(ctx).String(),
		CertificateExpiresAt: timestamp(h.s.cfg.Credentials().Certificate.Leaf.NotAfter),
	}
	if h.s.cfg.Snapshots != nil {
		host.Snapshots = uint32(len(h.s.cfg.Snapshots.List(ctx, "")))
	}
	for _, v := range h.s.cfg.Views.List() {
		host.Servers++
		if v.State == vserver.StateRunning {
			host.RunningServers++
		}
	}
	for _, i := range h.s.cfg.Images.List() {
		host.Images = append(host.Images, i.ID)
	}
	return connect.NewResponse(&reflejov1.GetHostResponse{Host: host}), nil
}
