resource "reflejo_virtual_server" "this" {
  for_each = local.servers

  name   = each.key
  host   = each.value
  image  = var.image
  power  = var.power
  cpu    = { cores = var.cores }
  memory = { max = var.memory }
  disk   = { size = var.disk }

  network = var.network == null ? null : {
    eth0 = {
      network = var.network
      ingress = var.bandwidth
      egress  = var.bandwidth
      publish = { for name, p in var.publish : name => { host_port = p.host_port, port = p.port, protocol = p.protocol } }
    }
  }

  first_boot_wo         = var.first_boot
  first_boot_wo_version = var.first_boot_version

  labels              = merge(var.labels, { pool = var.name })
  deletion_protection = var.protected
}

locals {
  # Hosts in turn where they are given; else reflejo chooses.
  servers = {
    for i in range(var.size) : format("%s-%d", var.name, i) => length(var.hosts) == 0 ? null : var.hosts[i % length(var.hosts)]
  }
}
