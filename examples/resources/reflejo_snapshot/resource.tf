resource "reflejo_virtual_server" "db" {
  name  = "orders-a"
  image = "debian"
}

# A new release takes a new snapshot; the one before stays until it is complete.
resource "reflejo_snapshot" "before" {
  server_id   = reflejo_virtual_server.db.id
  name        = "before-1-4"
  description = "before the upgrade to 1.4"
  labels      = { release = "1.3" }
  triggers    = { release = "1.4" }

  lifecycle {
    create_before_destroy = true
  }
}

# A new server whose disk starts as a copy of it.
resource "reflejo_virtual_server" "trial" {
  name     = "orders-trial"
  clone_of = reflejo_snapshot.before.id
}
