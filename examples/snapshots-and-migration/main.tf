# A server that keeps itself safe, a snapshot before a release, a backup of it on another
# host, a clone to try the release on, and a move of the server by one word.
terraform {
  required_version = ">= 1.11"
  required_providers {
    reflejo = {
      source = "reflejo/reflejo"
    }
  }
}

provider "reflejo" {}

resource "reflejo_image" "debian" {
  name   = "debian"
  hosts  = ["alpha", "beta"]
  source = var.debian
}

# On both hosts, so that the server keeps its address when it is moved.
resource "reflejo_network" "app" {
  name  = "app"
  hosts = ["alpha", "beta"]
  cidr  = "10.79.0.0/24"
}

resource "reflejo_virtual_server" "orders" {
  name   = "orders"
  host   = var.host # a change moves it, while it runs
  image  = reflejo_image.debian.id
  power  = "running"
  cpu    = { cores = 0.5 }
  memory = { max = "256MiB" }
  disk   = { size = "2GiB" }

  network = { eth0 = { network = reflejo_network.app.id } }

  # Every hour, and whenever it is stopped; older ones thin out.
  snapshot_policy = {
    schedule = "0 * * * *"
    on       = ["stop"]
    keep     = { hourly = 24, daily = 7, weekly = 4 }
  }

  # Every night to the other host: what it comes back from if its own is lost.
  backup_policy = {
    schedule = "30 2 * * *"
    target   = "host:beta"
    keep     = { daily = 14, monthly = 12 }
  }

  migration  = { max_downtime = "2s", snapshots = true }
  on_destroy = { keep_snapshots = false }

  restore_from = var.restore_from
}

# A new release, a new snapshot.
resource "reflejo_snapshot" "before" {
  server_id = reflejo_virtual_server.orders.id
  name      = "before-${var.release}"
  triggers  = { release = var.release }
}

resource "reflejo_backup" "before" {
  count = var.backup ? 1 : 0

  snapshot_id = reflejo_snapshot.before.id
  target      = "host:beta"
}

# Its disk starts as a copy of the snapshot; name, addresses and host keys are its own.
resource "reflejo_virtual_server" "trial" {
  count = var.trial ? 1 : 0

  name     = "orders-trial"
  clone_of = reflejo_snapshot.before.id
  power    = "running"
  cpu      = { cores = 0.5 }
  memory   = { max = "256MiB" }
  disk     = { size = "2GiB" }
  network  = { eth0 = { network = reflejo_network.app.id } }
}
