package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/bridge"
	"github.com/reflejo/terraform-provider-reflejo/agent/cgroup"
	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/disk"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/metrics"
	"github.com/reflejo/terraform-provider-reflejo/agent/migrate"
	"github.com/reflejo/terraform-provider-reflejo/agent/network"
	"github.com/reflejo/terraform-provider-reflejo/agent/oci"
	"github.com/reflejo/terraform-provider-reflejo/agent/peers"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
	"github.com/reflejo/terraform-provider-reflejo/agent/recovery"
	"github.com/reflejo/terraform-provider-reflejo/agent/service"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/store"
	"github.com/reflejo/terraform-provider-reflejo/agent/sysctl"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// How long a stopping agent waits: for answers under way, and for operations. What is not
// done by then is finished by the next start.
const (
	answersLimit    = 5 * time.Second
	operationsLimit = 10 * time.Second
	// All servers, when the host goes down. The service's TimeoutStopSec is larger.
	downLimit = 4 * time.Minute
)

func (a *app) agentCommand() *cobra.Command {
	var path string
	var check bool
	c := &cobra.Command{
		Use:   "agent",
		Short: "Be the agent of this host",
		Long: `Be the agent of this host: carve it into virtual servers, as the API asks.

SIGTERM and SIGINT stop the agent; servers go on, and the next agent takes them over.
SIGPWR says that the host goes down: servers are stopped cleanly, within their shutdown
timeouts, and started again when the agent is back. The service sends it.
SIGHUP reads certificates again (they are also read when their files change).`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			config, err := LoadConfig(path)
			if err != nil {
				return err
			}
			if check {
				_, err := fmt.Fprintf(a.out, "%s is valid\n", path)
				return err
			}
			return runAgent(c.Context(), config, a.err)
		},
	}
	c.Flags().StringVar(&path, "config", "/etc/reflejo/agent.hcl", "configuration file")
	c.Flags().BoolVar(&check, "check", false, "check the configuration file and exit")
	return c
}

// runAgent is the agent's life, until ctx ends.
func runAgent(ctx context.Context, config Config, logs io.Writer) error {
	log := hclog.New(&hclog.LoggerOptions{
		Name: "agent", Level: hclog.LevelFromString(config.Log.Level), Output: logs, JSONFormat: config.Log.JSON,
	})
	ag := &agent{config: config, log: log, started: time.Now()}
	defer ag.closeAll()
	if err := ag.open(ctx); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", config.Listen)
	if err != nil {
		return fmt.Errorf("listen for the API: %w", err)
	}
	served := make(chan error, 1)
	go func() { served <- ag.service.Serve(listener) }()
	log.Info("ready", "name", config.Name, "listen", listener.Addr().String(), "version", versionText(), "took", time.Since(ag.started).Round(time.Millisecond).String())
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	power := make(chan os.Signal, 1)
	signal.Notify(power, syscall.SIGPWR)
	defer signal.Stop(power)
	for {
		select {
		case err := <-served:
			return fmt.Errorf("serve the API: %w", err)
		case <-hangup:
			if err := ag.source.Err(); err != nil {
				log.Error("certificates can't be used; the old ones stay", "error", err)
			} else {
				log.Info("certificates read")
			}
		case <-power:
			log.Info("the host goes down; stopping servers")
			ag.shutdown(log)
			ag.down(log)
			return nil
		case <-ctx.Done():
			log.Info("stopping; servers go on")
			ag.shutdown(log)
			return nil
		}
	}
}

// agent is everything that the daemon consists of.
type agent struct {
	config  Config
	log     hclog.Logger
	started time.Time
	closers []func() // close what was opened, newest last

	source    *pki.Source
	db        *store.DB
	pool      *disk.Pool
	limits    *cgroup.Manager
	bridge    *bridge.Manager
	runtime   *oci.Runtime
	images    *image.Manager
	networks  *network.Manager
	servers   *vserver.Manager
	databases *database.Manager
	snapshots *snapshot.Manager
	policies  *snapshot.Policies
	backups   *backup.Manager
	recovery  *recovery.Manager
	moves     *migrate.Manager
	peers     *peers.Peers
	metrics   *metrics.Metrics
	service   *service.Service
	capacity  vserver.Capacity // without the disk, which changes
}

func (ag *agent) onClose(f func()) { ag.closers = append(ag.closers, f) }

// closeAll closes what was opened, newest first.
func (ag *agent) closeAll() {
	for _, f := range slices.Backward(ag.closers) {
		f()
	}
}

// open wires the agent from the bottom up and recovers what an earlier one left.
func (ag *agent) open(ctx context.Context) error {
	for _, step := range []func(context.Context) error{ag.openState, ag.openEdges, ag.openManagers, ag.recover, ag.openService, ag.openEndpoint} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (ag *agent) openState(context.Context) error {
	// Servers become children of this process, so that it learns how they end.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("adopt orphans: %w", err)
	}
	c := ag.config
	var err error
	if ag.source, err = pki.NewSource(pki.Files{CA: c.TLS.CAFile, Cert: c.TLS.CertFile, Key: c.TLS.KeyFile}); err != nil {
		return fmt.Errorf("read the agent's certificate: %w", err)
	}
	want := pki.Identity{Role: pki.RoleAgent, Name: c.Name}
	if have := ag.source.Get().Identity; have != want {
		return fmt.Errorf("the certificate in %s is %s, but this agent is %s: issue one with `reflejo pki issue agent %s`", c.TLS.CertFile, have, want, c.Name)
	}
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	// Servers' own users must get through it to their root directories.
	if err := os.MkdirAll(c.RunDir, 0o755); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	if ag.db, err = store.Open(filepath.Join(c.StateDir, "state.db")); err != nil {
		return err
	}
	ag.onClose(func() { ag.logged("close state", ag.db.Close()) })
	if err := sysctl.Raise("/proc/sys"); err != nil {
		ag.log.Warn("kernel tables could not be raised; many servers may exhaust them", "error", err)
	}
	if err := sysctl.RaiseLimits(); err != nil {
		ag.log.Warn("the agent's own limits could not be raised; one server may exhaust them for all", "error", err)
	}
	return nil
}

func (ag *agent) openEdges(ctx context.Context) error {
	c := ag.config
	size, _ := c.Pool.Bytes() // valid: the configuration was checked
	var err error
	ag.pool, err = disk.Open(ctx, disk.Config{Path: c.Pool.Path, RunDir: filepath.Join(c.RunDir, "disks"), PoolSize: size, Log: ag.log.Named("disk")})
	if err != nil {
		return err
	}
	ag.onClose(func() { ag.logged("close pool", ag.pool.Close()) })
	if err := ag.openLimits(); err != nil {
		return err
	}
	if ag.bridge, err = bridge.Open(ag.bridgeConfig()); err != nil {
		return err
	}
	ag.onClose(ag.bridge.Close)
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the agent's own program: %w", err)
	}
	ag.runtime, err = oci.Open(ctx, oci.Config{
		Runc:       c.Runtime.Runc,
		Lxcfs:      c.Runtime.Lxcfs,
		Root:       filepath.Join(c.RunDir, "runc"),
		RunDir:     filepath.Join(c.RunDir, "runtime"),
		StateDir:   c.StateDir,
		CgroupPath: ag.limits.Path,
		InitBinary: self,
		Log:        ag.log.Named("runtime"),
	})
	if err != nil {
		return err
	}
	ag.onClose(func() { ag.logged("close runtime", ag.runtime.Close()) })
	return nil
}

func (ag *agent) bridgeConfig() bridge.Config {
	c := ag.config
	b := bridge.Config{Uplink: c.Network.Uplink, GuardedPorts: []uint16{c.endpointPort()}, Log: ag.log.Named("network")}
	b.HostIngress, b.HostEgress = c.Network.rates()
	if _, port, err := net.SplitHostPort(c.Listen); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			b.GuardedPorts = append(b.GuardedPorts, uint16(n))
		}
	}
	b.Underlay = c.underlay()
	return b
}

func (ag *agent) openManagers(context.Context) error {
	c := ag.config
	var err error
	ag.images, err = image.NewManager(image.Config{
		Bases:    ag.pool.Bases(),
		Store:    ag.db.Bucket("images"),
		Dirs:     c.ImageDirs,
		TempDir:  filepath.Join(c.StateDir, "downloads"),
		Insecure: c.InsecureRegistries,
		InUse:    func(id string) int { return ag.servers.UsersOfImage(id) },
		Log:      ag.log.Named("image"),
	})
	if err != nil {
		return err
	}
	if err := ag.openNetworks(); err != nil {
		return err
	}
	if err := ag.openSnapshots(); err != nil {
		return err
	}
	ag.servers, err = vserver.NewManager(vserver.Config{
		Host:    c.Name,
		Records: ag.db.Bucket("servers"),
		Edges: vserver.Edges{
			Disks:    disksAndLogs{ag.pool, ag.runtime.RemoveConsoleLog},
			Limits:   ag.limits,
			Networks: ag.bridge,
			Runtime:  ag.runtime,
			Preparer: ag.runtime,
		},
		Segments:   ag.networks,
		Images:     imageFinder{ag.images},
		Captures:   ag.snapshots,
		Superseded: func(ctx context.Context, r vserver.Record) (string, error) { return ag.recovery.Superseded(ctx, r) },
		Changed:    ag.serverChanged,
		Stopping:   ag.serverStopping,
		Started:    func(id string) { ag.databases.ServerStarted(id) },
		Capacity:   ag.capacityNow,
		IDs:        vserver.IDRange{First: uint32(c.IDRange.First), Size: uint32(c.IDRange.Count)},
		Log:        ag.log.Named("vserver"),
		Observe:    func(operation string, took time.Duration, err error) { ag.metrics.Operation(operation, took, err) },
	})
	if err != nil {
		return err
	}
	if err := ag.openDatabases(); err != nil {
		return err
	}
	ag.networks.SetServers(ag.servers)
	ag.snapshots.Bind(ag.servers)
	if err := ag.openPolicies(); err != nil {
		return err
	}
	if err := ag.openMigrations(); err != nil {
		return err
	}
	if err := ag.openBackups(); err != nil {
		return err
	}
	ag.metrics = metrics.New(metrics.Config{Version: versionText(), Servers: ag.servers, Snapshots: ag.snapshots, Policies: ag.policies, Backups: ag.backups, Host: ag.hostMetrics, Log: ag.log.Named("metrics")})
	return nil
}

func (ag *agent) openNetworks() (err error) {
	c := ag.config
	ag.networks, err = network.NewManager(network.Config{
		Host:        c.Name,
		DefaultCIDR: netip.MustParsePrefix(c.Network.DefaultCIDR), // checked
		Underlay:    c.underlay(),
		Records:     ag.db.Bucket("networks"),
		Loans:       ag.db.Bucket("loans"),
		Exhausted:   func() { ag.moves.AskLoans() },
		Edge:        ag.bridge,
		Log:         ag.log.Named("network"),
	})
	return err
}

// recover takes over what is there: images before the servers that are made from them,
// networks before the servers that are on them.
func (ag *agent) recover(ctx context.Context) error {
	ag.onClose(ag.databases.Close)
	ag.onClose(ag.servers.Close)
	ag.onClose(ag.snapshots.Close)
	ag.onClose(ag.backups.Close)
	ag.onClose(ag.moves.Close)
	if err := ag.thaw(ctx); err != nil {
		return fmt.Errorf("thaw disks: %w", err)
	}
	if err := ag.images.Recover(ctx); err != nil {
		return fmt.Errorf("take over images: %w", err)
	}
	if err := ag.networks.Recover(ctx); err != nil {
		return fmt.Errorf("take over networks: %w", err)
	}
	if err := ag.servers.Recover(ctx); err != nil {
		return fmt.Errorf("take over servers: %w", err)
	}
	if err := ag.databases.Recover(ctx); err != nil {
		return fmt.Errorf("take over databases: %w", err)
	}
	if err := ag.dropArrivals(ctx); err != nil {
		return fmt.Errorf("remove arrivals: %w", err)
	}
	if err := ag.snapshots.Recover(ctx); err != nil {
		return fmt.Errorf("take over snapshots: %w", err)
	}
	if err := ag.moves.Recover(ctx); err != nil {
		return fmt.Errorf("take over moves: %w", err)
	}
	ag.backups.Recover()
	ag.background(ctx, ag.lookAtDatabases)
	ag.background(ctx, ag.policies.Run)
	ag.background(ctx, ag.backups.RunPolicies)
	ag.background(ctx, func(ctx context.Context) {
		if err := ag.runtime.Watch(ctx); err != nil && !errors.Is(err, context.Canceled) {
			ag.log.Error("consoles and /proc views are no longer looked after", "error", err)
		}
	})
	return nil
}

func (ag *agent) openService(context.Context) error {
	audit, err := service.OpenAudit(filepath.Join(ag.config.StateDir, "audit.log"))
	if err != nil {
		return err
	}
	ag.onClose(func() { ag.logged("close audit log", audit.Close()) })
	ag.service = service.New(service.Config{
		Host:        ag,
		Servers:     ag.servers,
		Views:       ag.servers,
		Networks:    ag.networks,
		Images:      ag.images,
		Snapshots:   ag.snapshots,
		Restores:    ag.servers,
		Backups:     ag.backups,
		Targets:     ag.backups,
		Migrations:  ag.moves,
		Recoveries:  ag.recovery,
		Commands:    ag.runtime,
		Consoles:    consoles{ag.runtime, filepath.Join(ag.config.StateDir, "console")},
		Credentials: ag.source.Get,
		Audit:       audit,
		Observer:    ag.metrics,
		Metrics:     ag.metrics.Handler(),
		Log:         ag.log.Named("api"),
	})
	return nil
}

// shutdown stops taking requests and gives operations a little time to end. closeAll,
// which follows, cancels the rest.
func (ag *agent) shutdown(log hclog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), answersLimit)
	defer cancel()
	if err := ag.service.Shutdown(ctx); err != nil {
		log.Warn("some requests were cut off", "error", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), operationsLimit)
	defer cancel()
	if err := ag.servers.Settled(ctx); err != nil {
		log.Info("operations under way are finished by the next start")
	}
}

// down stops the servers of a host that goes down. Left to the kernel's end they would lose
// what they have not written, or, as SIGTERM means to some inits, begin to reboot.
func (ag *agent) down(log hclog.Logger) {
	ag.servers.Close()
	ctx, cancel := context.WithTimeout(context.Background(), downLimit)
	defer cancel()
	ag.logged("stop servers", ag.servers.Down(ctx))
	log.Info("servers stopped")
}

func (ag *agent) logged(what string, err error) {
	if err != nil {
		ag.log.Error(what, "error", err)
	}
}
