data "reflejo_virtual_server" "db" {
  name = "orders-a"
}

# The newest complete one, whoever took it.
data "reflejo_snapshot" "newest" {
  server_id   = data.reflejo_virtual_server.db.id
  most_recent = true
}

resource "reflejo_virtual_server" "trial" {
  name     = "orders-trial"
  clone_of = data.reflejo_snapshot.newest.id
}
