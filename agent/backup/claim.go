package backup

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Claim says whose a server is: which host's agent may run it. It lies beside the server's
// backups, where every host that could recover it looks, so that an old host that returns
// finds that its copy must stay closed.
type Claim struct {
	Server     string // id
	Host       string
	Generation uint64 // grows by one with each change of hosts; the larger one holds
	Time       time.Time
}

func (c Claim) validate() error {
	switch {
	case !vserver.ValidID(c.Server):
		return fault.Field("server_id", "claim of server %q: want a UUID in lower case", clip(c.Server))
	case c.Host == "" || len(c.Host) > 253:
		return fault.Field("host", "claim of server %s by host %q: want a host's name", c.Server, clip(c.Host))
	case c.Generation == 0:
		return fault.New(fault.Invalid, "claim of server %s: generations begin at 1", c.Server)
	}
	return nil
}

// GetClaim reads who has a server; fault.NotFound where nobody ever said so.
func GetClaim(ctx context.Context, t Target, server string) (Claim, error) {
	text, err := t.Load(ctx, server)
	if err != nil {
		return Claim{}, fmt.Errorf("read claim: %w", err)
	}
	return decodeClaim(server, text)
}

func decodeClaim(server string, text []byte) (Claim, error) {
	var c Claim
	if err := json.Unmarshal(text, &c); err != nil {
		return Claim{}, fault.New(fault.Invalid, "read claim of server %s: %w", server, err)
	}
	if err := c.validate(); err != nil {
		return Claim{}, fmt.Errorf("read claim: %w", err)
	}
	if c.Server != server {
		return Claim{}, fault.New(fault.Invalid, "read claim of server %s: it is of server %s", server, c.Server)
	}
	return c, nil
}

// PutClaim says who has a server. Its generation must be larger than that of the claim that
// is there: else, and if another host is faster, it is fault.Aborted, which names who has
// it. The same host's claim of the same generation is there already, and succeeds.
func PutClaim(ctx context.Context, t Target, c Claim) error {
	if err := c.validate(); err != nil {
		return err
	}
	old, err := t.Load(ctx, c.Server)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("read claim: %w", err)
	}
	if err == nil {
		was, err := decodeClaim(c.Server, old)
		if err != nil {
			return err
		}
		if was.Host == c.Host && was.Generation == c.Generation {
			return nil
		}
		if was.Generation >= c.Generation {
			return fault.New(fault.Aborted, "claim server %s for host %s as generation %d: host %s has it since %s as generation %d",
				c.Server, c.Host, c.Generation, was.Host, was.Time.UTC().Format(time.RFC3339), was.Generation)
		}
	} else {
		old = nil
	}
	text, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode claim: %w", err)
	}
	if err := t.Swap(ctx, c.Server, old, text); err != nil {
		return fmt.Errorf("claim server %s for host %s: %w", c.Server, c.Host, err)
	}
	return nil
}
