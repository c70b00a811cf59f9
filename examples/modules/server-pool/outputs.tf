output "ids" {
  description = "Id of each server, by name."
  value       = { for name, s in reflejo_virtual_server.this : name => s.id }
}

output "addresses" {
  description = "Address of each server's eth0, by name."
  value       = { for name, s in reflejo_virtual_server.this : name => lookup(s.addresses, "eth0", null) }
}

output "hosts" {
  description = "Host of each server, by name."
  value       = { for name, s in reflejo_virtual_server.this : name => s.host }
}
