// Package database is what a database is, and its life on one host: a PostgreSQL cluster in
// a virtual server, made with checksums, run under a guard, and open to its clients.
//
//	spec.go     what a user asked for (Spec), defaults and validation
//	record.go   what is durable about a database
//	plan.go     pure: (record, what is there) → steps
//	manager.go  what callers ask for
//	work.go     the loop that runs steps, one database at a time each
//	edges.go    PostgreSQL, servers and the filter as this package needs them
//
// A [Record] is persisted before anything is done for it, every step may run twice, and an
// agent's start plans again from what is there: a database that runs is adopted, not
// disturbed. A database follows its server: it is started when the server runs, and there is
// nothing to do for it while the server does not.
package database
