# Three hosts, three images, two networks, six servers. One network is on all hosts:
# its servers are neighbours wherever they live. Which hosts there are and how to reach
# them comes from the environment (REFLEJO_HOSTS, REFLEJO_CA_FILE, …).
terraform {
  required_version = ">= 1.11"
  required_providers {
    reflejo = {
      source = "reflejo/reflejo"
    }
  }
}

provider "reflejo" {}

locals {
  everywhere = ["alpha", "beta", "gamma"]
}

resource "reflejo_image" "debian" {
  name   = "debian"
  hosts  = local.everywhere
  source = var.debian
}

resource "reflejo_image" "debian_next" {
  name   = "debian-next"
  hosts  = local.everywhere
  source = var.debian_next
}

# Pulled from a registry.
resource "reflejo_image" "hello" {
  name   = "hello"
  hosts  = ["alpha", "gamma"]
  source = var.hello
}

resource "reflejo_network" "app" {
  name  = "app"
  hosts = local.everywhere
  cidr  = "10.77.0.0/16"
}

resource "reflejo_network" "front" {
  name  = "front"
  hosts = ["alpha"]
  cidr  = "10.78.0.0/24"
}

# A server with every kind of limit.
resource "reflejo_virtual_server" "measured" {
  name      = "debian-alpha"
  host      = "alpha"
  image     = reflejo_image.debian.id
  power     = var.power
  processes = 300
  cpu       = { cores = var.cores }
  memory    = { max = var.memory }
  disk      = { size = var.disk, write_bps = "20MiB", read_iops = 200 }

  network = {
    eth0 = {
      network = reflejo_network.front.id
      ingress = "100mbit"
      egress  = var.egress
      publish = { iperf3 = { host_port = 5201, port = 5201 } }
    }
    eth1 = { network = reflejo_network.app.id }
  }

  first_boot_wo         = file("${path.module}/first-boot.sh")
  first_boot_wo_version = "1"
  labels                = { example = "three-hosts" }
}

# Two releases of Debian side by side on one network.
resource "reflejo_virtual_server" "app" {
  for_each = {
    debian-beta = { host = "beta", image = reflejo_image.debian.id }
    next-beta   = { host = "beta", image = reflejo_image.debian_next.id }
    next-gamma  = { host = "gamma", image = reflejo_image.debian_next.id }
  }

  name    = each.key
  host    = each.value.host
  image   = each.value.image
  power   = "running"
  cpu     = { cores = 0.5 }
  memory  = { max = "256MiB" }
  network = { eth0 = { network = reflejo_network.app.id } }
  labels  = { example = "three-hosts" }
}

# An OCI image that is one program; its port is published on its host.
resource "reflejo_virtual_server" "hello" {
  for_each = toset(["alpha", "gamma"])

  name   = "hello-${each.key}"
  host   = each.key
  image  = reflejo_image.hello.id
  power  = "running"
  cpu    = { cores = 0.1 }
  memory = { max = "64MiB" }
  disk   = { size = "512MiB" }

  network = {
    eth0 = {
      network = reflejo_network.app.id
      publish = { web = { host_port = 8080, port = 80 } }
      allow   = [{ from = reflejo_network.app.cidr, protocol = "tcp", ports = "80" }]
    }
  }

  labels = { example = "three-hosts" }
}
