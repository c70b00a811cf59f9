package postgres

import (
	"fmt"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
)

// accessFile is pg_hba.conf: the agent by the socket, the owner's and other roles' clients
// from the given ranges. Nobody else gets in: not by the socket, as the server's users are
// not the database's, and nobody from elsewhere as the agent's role.
func accessFile(c database.Cluster) string {
	var b strings.Builder
	b.WriteString("# Written by reflejo; changes are lost. Use the database's clients.\n")
	fmt.Fprintf(&b, "local all %s scram-sha-256\n", adminRole)
	fmt.Fprintf(&b, "local replication %s scram-sha-256\n", adminRole)
	fmt.Fprintf(&b, "host all %s all reject\n", adminRole)
	kind := "hostssl"
	switch c.Clients.TLS {
	case database.TLSAllow:
		kind = "host"
	case database.TLSOff:
		kind = "hostnossl"
	}
	for _, p := range c.Clients.CIDRs {
		fmt.Fprintf(&b, "%s all all %s scram-sha-256\n", kind, p)
	}
	return b.String()
}
