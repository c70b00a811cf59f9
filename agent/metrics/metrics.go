// Package metrics shows an agent and its servers to Prometheus. Everything about servers
// is read when somebody asks, never in between, so an agent that nobody scrapes does no work.
//
//	m := metrics.New(metrics.Config{Servers: manager, Host: host, …})
//	m.Request("ServerService/GetServer", "ok", took)   // counted as it happens
//	http.Handle("/metrics", m.Handler())
package metrics

import (
	"context"
	"net/http"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Servers tells about virtual servers (vserver.Manager).
type Servers interface {
	List() []vserver.View
	// Usage is fault.Precondition or fault.NotFound for a server that does not run.
	Usage(ctx context.Context, id string) (vserver.Usage, error)
	// LinkUsage is by interface; it may be empty.
	LinkUsage(ctx context.Context, id string) (map[string]vserver.LinkUsage, error)
	Resources() (capacity, promised, free vserver.Resources)
}

// Host is what else is known of the host at one moment.
type Host struct {
	PoolSize          int64 // bytes
	PoolUsed          int64 // bytes
	CertificateExpiry time.Time
	Conditions        []Condition
}

// Condition is a condition of the host, as `reflejo status` shows it.
type Condition struct{ Type, Severity string }

// Config is what the metrics are read from.
type Config struct {
	Version   string
	Servers   Servers
	Snapshots Snapshots // nil: none
	Policies  Policies  // nil: none
	Backups   Backups   // nil: none
	Host      func(ctx context.Context) (Host, error)
	Log       hclog.Logger // nil: none
}

// scrapeLimit bounds one scrape; what was read by then is answered.
const scrapeLimit = 10 * time.Second

// Metrics counts what happens and collects what is. It is safe for several goroutines.
type Metrics struct {
	registry *prometheus.Registry

	requests     *prometheus.CounterVec
	requestTime  *prometheus.HistogramVec
	operations   *prometheus.CounterVec
	operationLen *prometheus.HistogramVec
}

// New makes the metrics of one agent, in a registry of their own.
func New(cfg Config) *Metrics {
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "reflejo_requests_total", Help: "API calls that were answered, by procedure and outcome.",
		}, []string{"procedure", "code"}),
		requestTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "reflejo_request_duration_seconds", Help: "How long API calls took.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60},
		}, []string{"procedure"}),
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "reflejo_operations_total", Help: "Operations on servers that ended, by kind and outcome.",
		}, []string{"operation", "outcome"}),
		operationLen: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "reflejo_operation_duration_seconds", Help: "How long operations on servers took.",
			Buckets: []float64{.005, .02, .05, .1, .25, 1, 5, 30, 120},
		}, []string{"operation"}),
	}
	info := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "reflejo_agent_info", Help: "The agent's version; always 1.", ConstLabels: prometheus.Labels{"version": cfg.Version},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m.requests, m.requestTime, m.operations, m.operationLen, info, &collector{cfg},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Request counts one answered API call.
func (m *Metrics) Request(procedure, code string, took time.Duration) {
	m.requests.WithLabelValues(procedure, code).Inc()
	m.requestTime.WithLabelValues(procedure).Observe(took.Seconds())
}

// Operation counts one operation on a server that ended; see vserver.Config.Observe.
func (m *Metrics) Operation(operation string, took time.Duration, err error) {
	outcome := "ok"
	if err != nil {
		outcome = fault.KindOf(err).String()
	}
	m.operations.WithLabelValues(operation, outcome).Inc()
	m.operationLen.WithLabelValues(operation).Observe(took.Seconds())
}

// Handler answers scrapes, two at a time.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 2,
		ErrorHandling:       promhttp.ContinueOnError,
	})
}
