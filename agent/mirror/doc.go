// Package mirror decides for the nodes of a mirror session: principal, mirror and witness.
//
// It is one pure function. A node keeps its State, gives Step each event, and does the actions
// that come back, in order:
//
//	state, actions = mirror.Step(state, event)
//
// The package knows neither clock nor network nor disk. Time is the event Tick and the number
// Event.Now that every event carries (this host's boot clock in ticks); a length of time is a
// number of ticks. State is a comparable value, so a test can visit every order of events. A
// node begins as New(self, grace, durable) with the event Boot; what it must not forget is
// Durable, which the action Persist makes durable.
//
// What is outside: whether a copy may become a mirror at all, moving log and pages, parsing
// records, compression, redo, the guard and the port. The core says when.
//
// # States
//
// A session's state is that of its principal; suspended, link and catching up are kept apart
// and shown in one order (mirroring.md §3.1).
//
//	           Begin, invited
//	                │
//	                ▼      probe waited, mirror has it
//	┌────────▶ SYNCHRONIZING ────────────────────▶ SYNCHRONIZED ──── Failover ────┐
//	│  met again    │  ▲                              │     │                     ▼
//	│               │  └── copy lost, Safety ─────────┘     │              PENDING_FAILOVER
//	│      link lost│                                       │link lost       │ roles swap:
//	│               ▼                                       ▼                │ SYNCHRONIZING
//	└────────── DISCONNECTED ◀──────────────────────────────┘                ▼
//	                │   as principal: exposed once granted, closed without quorum
//	   Force        │   as mirror: asks the witness when the principal is lost for good
//	  (mirror)      ▼
//	            SUSPENDED ── Resume ──▶ SYNCHRONIZING (or a rejoin first)
//
// The database of a principal (Phase):
//
//	Down ──lease, role beyond doubt──▶ Starting | Promoting ──▶ Closed ──gate──▶ Serving
//	  ▲                                                                            │
//	  └───────── lease over, deposed, ended, given away ◀──── Stopped ◀── Stopping ┘
//
// The gate: nobody sees the end of recovery before the mirror has it, or the principal may be
// alone. So a row that somebody read is as safe as one that was acknowledged.
//
// # The record
//
// Record is what is agreed upon. The owner of a role sequence alone writes the records in it,
// one configuration sequence after the other; all nodes keep the newest. A younger role
// sequence begins
//
//   - at the witness by compare-and-set: the mirror asks (automatic, given or forced);
//   - at the mirror, where the principal gave the role away and the witness was not at hand,
//     or there is none, and where there is none by force;
//   - two higher, with the old owner, when a promotion that was asked for or offered is made
//     void by principal and mirror together (A5) or by the witness (B5).
//
// # Invariants
//
// The tests check these in every order of events of small worlds. Each has a test in which the
// core is broken on purpose, and the explorer finds it.
//
//  1. A commit that was acknowledged, or a row that was read, is in the log of whoever serves.
//     Only forced service loses any, and none while the record says synchronised. (M-16,
//     ruling 12)
//  2. With a witness never two partners serve at the same time, by the clock and not only by
//     what they know; without one only after force. (M-45, ruling 3)
//  3. A role sequence has one owner. (ruling 5)
//  4. Records only get younger, and one version is one record. (M-15, ruling 5)
//  5. A mirror's log never becomes shorter except by undoing, is a beginning of the
//     principal's as far as the principal believes it to be, and is what it acknowledged.
//     (A11, A12, B2)
//  6. Who has asked for a role sequence supports none below: no echo, no acknowledgement.
//     (A5, ruling 6)
//  7. What is acted on has been made durable before.
//  8. A copy that is not whole never serves. (B2, B6, M-65)
//  9. When faults stop, the session comes to rest: one principal, one mirror, SYNCHRONIZED.
//     (M-55, A5 b)
//  10. A principal whose mirror is dead for good serves on, with the witness's word where
//     there is one. (M-31, M-44, ruling 9)
//
// # Why it holds
//
// Acknowledging (1). walsender hears of an LSN when the mirror hardened it, or, alone, when it
// was flushed here. Alone means Granted: a record with Synced false is durable at witness or
// mirror. One is enough, because taking over needs both: a mirror whose own record says
// synchronised, and a witness whose record says so (A4). Granted ends before the first record
// with Synced true is written, and a probe commit has shown before that commits wait (A1).
//
// Serving (2). A lease is a ping's stamp that came back, plus T. Who echoed promises not to
// take over, or not to let anybody, for T, drift and k from then on its own count of ticks. The
// mirror asks only when its own promise is over, the witness grants only when its own is: so
// when a role is granted, whichever of the two gave the last lease, it is over (A6, A7).
//
// Death notices shorten the wait, but are about one start of the database: before it starts
// again under the same role sequence, a record with a later start is durable at witness or
// mirror (A8).
package mirror
