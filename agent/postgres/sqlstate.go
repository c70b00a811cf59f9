package postgres

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// The SQLSTATEs that we act on.
const (
	cannotConnectNow = "57P03" // it starts, recovers or shuts down
	adminShutdown    = "57P01"
	crashShutdown    = "57P02"
	tooMany          = "53300" // connections
	diskFull         = "53100"
	noMemory         = "53200"
	badPassword      = "28P01"
	noAccess         = "28000"
	dataCorrupted    = "XX001"
	indexCorrupted   = "XX002"
)

// sqlState is the SQLSTATE of an error, "" if it is none of PostgreSQL's.
func sqlState(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// classify gives an error of PostgreSQL's a kind.
func classify(err error) error {
	switch sqlState(err) {
	case "":
		return err
	case cannotConnectNow, adminShutdown, crashShutdown, tooMany:
		return fault.Wrap(fault.Unavailable, err)
	case diskFull, noMemory:
		return fault.Wrap(fault.Exhausted, err)
	case badPassword, noAccess, dataCorrupted, indexCorrupted:
		return fault.Wrap(fault.Precondition, err)
	}
	return err
}
