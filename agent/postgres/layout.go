package postgres

import (
	"fmt"
	"path"
	"path/filepath"
	"strconv"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
)

// The user that PostgreSQL runs as in every image, and the agent's own role in it.
const (
	systemUser = "postgres"
	adminRole  = "reflejo"
	adminBase  = "postgres" // the SQL database that every cluster has
)

// layout is where a cluster's things are. data and share are paths in the server, the
// others on the host.
type layout struct {
	data     string // PGDATA
	share    string // what host and server share, as the server sees it
	guard    string
	shared   string // the same as the host sees it
	keys     string // certificate and key; they outlive a boot
	log      string
	settings string // names below share and shared
	access   string
	people   string
	cert     string
	key      string
	sockets  string
}

func (cfg Config) layout(c database.Cluster) layout {
	run := filepath.Join(cfg.RunDir, c.ID)
	return layout{
		data:     path.Join("/var/lib/postgresql", strconv.Itoa(c.Major), c.ID),
		share:    path.Join("/run/reflejo/databases", c.ID),
		guard:    filepath.Join(run, "guard"),
		shared:   filepath.Join(run, "share"),
		keys:     filepath.Join(cfg.StateDir, c.ID),
		log:      filepath.Join(cfg.StateDir, c.ID, "postgres.log"),
		settings: "postgresql.conf", access: "pg_hba.conf", people: "pg_ident.conf",
		cert: "server.crt", key: "server.key", sockets: "socket",
	}
}

// socketName is what postgres calls its socket.
func socketName(port int) string { return fmt.Sprintf(".s.PGSQL.%d", port) }
