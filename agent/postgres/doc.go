// Package postgres keeps PostgreSQL clusters in virtual servers: it is database.Clusters and
// database.Inspector.
//
// What is written and what a difference means is decided by pure functions:
//
//	layout.go       where things are, in the server and on the host
//	settings.go     postgres' command line and the settings file
//	access.go       pg_hba.conf
//	secret.go       SCRAM secrets: passwords are never kept
//	certificate.go  the server's certificate
//	answers.go      what programs of PostgreSQL print: versions, control data, parameters
//	check.go        what a running server's settings tell: restart it, or somebody was at it
//	sqlstate.go     what an error of PostgreSQL's means to us
//
// The *_linux.go files act: through programs in the server for what is in the server, through
// a guard (package guard) for what runs, and through a socket in a directory that host and
// server share for SQL.
//
// # Who may change what
//
// Root in the server owns its machine. What the agent relies on is on postgres' command
// line, which beats the files and ALTER SYSTEM; the files that the agent writes are in the
// shared directory, which is the host's and read-only to the server but for the socket's
// part; and Inspect says what is different all the same. The shared directory is a tmpfs of
// its own with a bound, because the server's users can fill what they can write to.
package postgres
