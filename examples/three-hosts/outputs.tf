output "addresses" {
  description = "Addresses of all servers, by name and interface."
  value = merge(
    { (reflejo_virtual_server.measured.name) = reflejo_virtual_server.measured.addresses },
    { for s in reflejo_virtual_server.app : s.name => s.addresses },
    { for s in reflejo_virtual_server.hello : s.name => s.addresses },
  )
}

output "measured_id" {
  description = "Id of server debian-alpha."
  value       = reflejo_virtual_server.measured.id
}
