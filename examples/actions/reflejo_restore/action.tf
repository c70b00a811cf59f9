action "reflejo_restore" "db" {
  config {
    server_id   = reflejo_virtual_server.db.id
    snapshot_id = reflejo_snapshot.before.id
  }
}

# terraform apply -invoke=action.reflejo_restore.db
