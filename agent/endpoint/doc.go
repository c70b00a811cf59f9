// Package endpoint joins agents with each other: a port of its own, apart from the API, for
// what one host's agent has to say to another's. Both sides prove with certificates of the
// site's authority that they are agents (TLS 1.3, ALPN "reflejo-endpoint"), the side that is
// called is told what the connection is for and by what right, and hands it to the handler
// of that purpose.
//
//	s := endpoint.NewServer(endpoint.ServerConfig{Credentials: source.Get})
//	s.Handle("migrate/1", func(ctx context.Context, c *endpoint.Conn) error { … })
//	go s.Serve(listener)
//
//	c, err := endpoint.Dial(ctx, endpoint.Config{Host: "beta", Address: "198.18.0.12:7444", Credentials: source.Get, Purpose: "migrate/1", Right: ticket})
//	defer c.Close()
//	err = c.Send(16, payload)
//	frame, err := c.Receive()
//
// A certificate says who the other side is ([Conn.Peer]); what it may do is the handler's to
// decide.
//
// # Frames
//
// Inside TLS each side sends frames. Numbers are big-endian.
//
//	offset size field
//	     0    4 n, length of the payload, 0 … 4 MiB (64 KiB until the hello is answered)
//	     4    1 type
//	     5    n payload
//
//	type  name     payload
//	   1  hello    first frame of the side that calls
//	   2  welcome  the answer, then frames flow both ways
//	   3  error    the sender gives up; nothing follows
//	   4  ping     none; the sender is alive
//	   5  bye      none; the sender has said all it had to say; nothing follows
//	16 … the purpose's own
//
// Other types below 16 are for later versions and an error in this one.
//
//	hello                                       welcome
//	offset size field                           offset size field
//	     0    8 "reflejo\n"                          0    2 the version that both speak from now on
//	     8    2 lowest version that is spoken
//	    10    2 highest version                 error
//	    12    1 p, length of the purpose        offset size field
//	    13    p purpose, "migrate/1"                 0    1 fault.Kind
//	  13+p    2 r, length of the right               1    2 f, length of the field to blame
//	  15+p    r right, a ticket's secret             3    f field
//	                                               3+f  ... text, UTF-8
//
// What follows these fields in a hello or welcome belongs to later versions and is ignored.
//
// # Silence
//
// A side that has sent nothing for [pingEvery] sends a ping; a side that waits to read and
// hears nothing for [silence] gives the connection up, so a link that was cut without a
// word is noticed in that time, on both sides. There is no pong: an answer would have to
// wait for a writer that may itself be waiting for the reader, and a side that is heard
// every three seconds needs no question.
package endpoint

import "time"

// Protocol is the ALPN name of the endpoint.
const Protocol = "reflejo-endpoint"

// Port is where agents listen for each other if nothing else is said.
const Port = 7444

// The versions of the protocol that this program speaks.
const (
	lowestVersion  = 1
	highestVersion = 1
)

// Bounds.
const (
	// MaxPayload is the longest payload of a frame, bytes.
	MaxPayload = 4 << 20
	maxHello   = 64 << 10 // payload before the hello is answered
	maxPurpose = 64
	maxRight   = 4 << 10
	maxText    = 8 << 10 // of an error

	handshakeTime = 10 * time.Second // for TLS and hello together
	pingEvery     = 3 * time.Second
	silence       = 12 * time.Second
	lingerTime    = 2 * time.Second // how long the other side may take to read why it is refused
)

// FirstType is the lowest type of a purpose's own frames.
const FirstType = 16

// The types of frames that are the endpoint's own.
const (
	typeHello   = 1
	typeWelcome = 2
	typeError   = 3
	typePing    = 4
	typeBye     = 5
)
