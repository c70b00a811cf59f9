// Package migrate moves a server from this host to another, over the agents' endpoint. The
// source drives, the target's durable record decides whose the server is.
//
// The pieces:
//
//	handover.go pure: who has the server, and what each side does about what it hears
//	rounds.go   pure: which ranges are sent, when copying has done what it can
//	record.go   what is durable on either side; tickets
//	wire.go     the frames, below
//	target.go   prepares, receives, takes over, forgets
//	source.go   starts, copies, hands over, gives up; send.go sends a round
//	reclaim.go  takes a server back from a target that is lost for good
//	lend.go     asks where servers are that took addresses of this host along
//	edges.go    the rest of the agent as this package needs it
//
// # Who has the server
//
// Each side has a record; [vserver.Record] Leaving is what keeps the source's server down.
//
//	source   (none) ─Start─▶ copying ─Leave, then─▶ handover ──owner──▶ moved ──known──▶ done
//	            ▲               │  ▲                    │
//	            └──gives up─────┘  └──unknown, then Leave("")
//
//	target   (none) ─Prepare─▶ incoming ───commit───▶ owner ──known──▶ (none)
//	            ▲                  │ abort, expired
//	            └───(all undone)── forgetting
//
// Invariants, each held by the tests of handover_test.go in every reachable state:
//
//  1. The source may run the server exactly while its vserver record is live and not
//     Leaving; the target exactly from owner on (its record is accepted after that). Never
//     both.
//  2. A commit is sent only in handover, and handover is recorded only after Leaving. So
//     whoever may have sent one does not start the server by itself, whatever it forgot.
//  3. The source leaves handover only by an answer of the target: owner, or unknown.
//  4. The target answers owner only after that is durable, and from then on answers nothing
//     else until the source has told that it knows; so a later deletion or onward move there
//     is never taken for an aborted one.
//  5. The target answers unknown to a move only when it can never take over by it: a move's
//     id is made once, its record goes durably, and a commit that names a move without a
//     record is answered unknown too. A late commit of an old connection does nothing.
//  6. Going back, the source first records copying, then clears Leaving: with 2 it follows
//     that Leaving with copying can be cleared by anybody who finds it.
//  7. Everything that can fail at the target (writing, placing the disk) has succeeded
//     before owner is recorded. What comes after is done again until it is done.
//  8. Once links are up and both agents run, exactly one side has the server, and arrivals,
//     reservations and migration snapshots are gone.
//
// A target that is lost for good never answers: then somebody says so ([Manager.Reclaim]).
// This is the one other way out of handover than those of 3, and what keeps 1 is the
// server's term. The source records reclaims, with a higher term, asks the target nothing
// any more, and only then clears Leaving and sets that term, in one write. A target that
// returns after all and had recorded owner asks before it starts the server, as long as the
// source has not told that it knows ([Manager.Awaits]), and finds the higher term.
//
// While the source is in handover and can't reach the target the server runs nowhere: only
// the target knows whose it is.
//
// # Frames of purpose migrate/1
//
// Numbers are big-endian. What is JSON may get more fields in later versions.
//
//	type  name   direction  payload
//	  16  open   ▶          JSON of the move and the server: the target answers state
//	  17  round  ▶          JSON of the round that begins; its ranges follow in ascending order
//	  18  data   ▶          bytes of the disk, below
//	  19  zero   ▶          a range that reads as zeros, below
//	  20  mark   ▶          JSON of an offset: all below it is sent; make it durable, answer state
//	  21  end    ▶          JSON of the round, how many frames and what sum: check, make durable, answer state
//	  22  keep   ▶          JSON of a snapshot's record: keep what arrived as it, answer state
//	  23  ask    ▶          JSON of the move and one of status, commit, abort, known: answer state
//	  32  state  ◀          JSON of what the target has
//
//	data                                      zero
//	offset size field                         offset size field
//	     0    8 offset in the disk                 0    8 offset in the disk
//	     8    4 length in the disk                 8    8 length
//	    12    4 CRC-32C of these bytes
//	    16    1 1 if zstd, 0 if as they are
//	    17  ... the bytes
package migrate
