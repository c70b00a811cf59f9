// Package databasetest has fakes of what package database asks of its edges, and the
// contract of Clusters, which runs against the fake and against PostgreSQL.
package databasetest
