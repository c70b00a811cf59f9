package databasetest

import (
	"testing"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

func TestFakeKeepsTheContract(t *testing.T) {
	h := New()
	server := uuid.NewString()
	h.SetServer(server, vserver.StateRunning)
	RunClusters(t, h, database.Cluster{ID: uuid.NewString(), Name: "orders", Server: server, Major: 15, Port: 5432, Owner: "app",
		Parameters: map[string]string{"shared_buffers": "16MB", "work_mem": "1MB"}})
}
