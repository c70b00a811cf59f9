# What is left out is one core, 512 MiB, 10 GiB, and an address on its host's network;
# the host is the one with most room.
resource "reflejo_virtual_server" "small" {
  name  = "small"
  image = "debian"
}

resource "reflejo_network" "app" {
  name  = "app"
  hosts = ["alpha"]
  cidr  = "10.77.0.0/16"
}

resource "reflejo_virtual_server" "db" {
  name  = "orders-a"
  host  = "alpha"
  image = "debian"
  power = "running"

  cpu    = { cores = 2, weight = 200 }
  memory = { max = "2GiB", swap = "512MiB" }
  disk   = { size = "20GiB", write_bps = "200MiB", read_iops = 5000 }

  network = {
    eth0 = {
      network = reflejo_network.app.id
      address = "10.77.64.10"
      ingress = "1gbit"
      egress  = "100mbit"
      publish = { postgres = { host_port = 5432, port = 5432 } }
      allow   = [{ from = "10.77.0.0/16", protocol = "tcp", ports = "5432" }]
    }
  }

  first_boot_wo         = file("${path.module}/first-boot.sh")
  first_boot_wo_version = "1"

  labels              = { team = "orders" }
  deletion_protection = true
  on_destroy          = { shutdown_timeout = "2m" }
}
