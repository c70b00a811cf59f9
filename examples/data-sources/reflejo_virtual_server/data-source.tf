data "reflejo_virtual_server" "db" {
  name = "orders-a"
  host = "alpha"
}

output "memory_used" {
  value = data.reflejo_virtual_server.db.memory_used
}
