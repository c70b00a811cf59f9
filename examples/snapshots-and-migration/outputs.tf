output "id" {
  value = reflejo_virtual_server.orders.id
}

output "address" {
  value = reflejo_virtual_server.orders.addresses["eth0"]
}

output "snapshot" {
  value = reflejo_snapshot.before.id
}
