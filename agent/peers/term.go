package peers

import (
	"context"
	"encoding/binary"

	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

const (
	typeQuestion = 16
	typeTerm     = 17
)

// Term asks a host in which term it has a server, by id; 0 if it has none. Outcomes besides
// success: fault.NotFound for a host that is not configured, fault.Unavailable for one that
// can't be asked now, fault.Invalid for what is no id.
func (p *Peers) Term(ctx context.Context, host, server string) (uint64, error) {
	if !vserver.ValidID(server) {
		return 0, fault.New(fault.Invalid, "ask host %s for a server's term: want the server's id, a UUID in lower case", host)
	}
	c, err := p.dial(ctx, host, PurposeTerm)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.send(typeQuestion, []byte(server)); err != nil {
		return 0, err
	}
	f, err := c.receive()
	if err != nil {
		return 0, err
	}
	if f.Type != typeTerm || len(f.Payload) != 8 {
		return 0, c.nonsense("a frame of type %d with %d bytes, want a term", f.Type, len(f.Payload))
	}
	return binary.BigEndian.Uint64(f.Payload), nil
}

// TermHandler answers for this host, of whose servers term tells the term. It belongs to
// [PurposeTerm].
func TermHandler(term func(server string) uint64) endpoint.Handler {
	return func(_ context.Context, c *endpoint.Conn) error {
		f, err := c.Receive()
		if err != nil {
			return ifLost(err)
		}
		if f.Type != typeQuestion || !vserver.ValidID(string(f.Payload)) {
			return fault.New(fault.Invalid, "read question: a frame of type %d with %d bytes, want a server's id", f.Type, len(f.Payload))
		}
		return c.Send(typeTerm, binary.BigEndian.AppendUint64(nil, term(string(f.Payload))))
	}
}
