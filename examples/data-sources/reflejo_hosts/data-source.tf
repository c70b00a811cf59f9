data "reflejo_hosts" "all" {}

output "free_cores" {
  value = { for name, host in data.reflejo_hosts.all.hosts : name => host.free.cores }
}
