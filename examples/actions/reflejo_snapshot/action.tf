action "reflejo_snapshot" "db" {
  config {
    server_id   = reflejo_virtual_server.db.id
    description = "before a change"
  }
}

# Before every change of the server.
resource "reflejo_virtual_server" "db" {
  name  = "orders-a"
  image = "debian"

  lifecycle {
    action_trigger {
      events  = [before_update]
      actions = [action.reflejo_snapshot.db]
    }
  }
}
