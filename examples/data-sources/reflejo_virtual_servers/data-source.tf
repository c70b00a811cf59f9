data "reflejo_virtual_servers" "orders" {
  labels = { team = "orders" }
}

output "addresses" {
  value = { for s in data.reflejo_virtual_servers.orders.servers : s.name => s.addresses }
}
