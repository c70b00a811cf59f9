resource "reflejo_snapshot" "before" {
  server_id = "8f2c1a52-3a0c-4f43-8a63-0f6f6f2b9c10"
  name      = "before-1-4"
}

# In the backup store of another host.
resource "reflejo_backup" "before" {
  snapshot_id = reflejo_snapshot.before.id
  target      = "host:beta"
}

# In a store, building on what is there of the server already.
resource "reflejo_backup" "away" {
  snapshot_id = reflejo_snapshot.before.id
  target      = "s3://backups/orders"
  incremental = true
}
