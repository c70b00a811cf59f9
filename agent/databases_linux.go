package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/guard"
	"github.com/reflejo/terraform-provider-reflejo/agent/postgres"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// lookEvery is how often databases are compared with what they should be.
const lookEvery = time.Minute

func (ag *agent) openDatabases() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the agent's own program: %w", err)
	}
	beside, err := ag.limits.Beside()
	if err != nil {
		return err
	}
	edge, err := postgres.Open(postgres.Config{
		RunDir:   filepath.Join(ag.config.RunDir, "databases"),
		StateDir: filepath.Join(ag.config.StateDir, "databases"),
		Servers:  ag.runtime,
		Guard:    []string{self, guard.Command},
		Groups:   beside,
		Log:      ag.log.Named("postgres"),
	})
	if err != nil {
		return err
	}
	ag.databases, err = database.NewManager(database.Config{
		Host:      ag.config.Name,
		Records:   ag.db.Bucket("databases"),
		Clusters:  edge,
		Inspector: edge,
		Servers:   ag.servers,
		Secrets:   postgres.Secrets{},
		Log:       ag.log.Named("database"),
	})
	return err
}

func (ag *agent) lookAtDatabases(ctx context.Context) { ag.databases.Look(ctx, lookEvery) }

// serverChanged tells those whose things are in servers.
func (ag *agent) serverChanged(v vserver.View, was vserver.State) {
	ag.databases.ServerChanged(v, was)
	ag.policies.Changed(v, was)
}

// serverStopping ends a server's databases before it.
func (ag *agent) serverStopping(ctx context.Context, id string, limit time.Duration) {
	ag.logged("stop a server's databases", ag.databases.ServerStops(ctx, id, limit))
}
