// Package service is an agent's API: a request comes in as the contract's messages
// (agent/api), is authorised, bounded and converted, and becomes one domain call.
//
//	authz.go    procedure → roles: the one table that gives rights
//	gate.go     what every call passes: bounds, time limit, panics, audit, metrics
//	errors.go   fault kind → wire; agent/api/errors.go is the way back
//	convert.go  messages ↔ domain types
//
// Handlers decide nothing: they call the managers through the small interfaces below
// and never hold a lock, so a slow or vanished client costs one goroutine and no more.
package service
