# One segment on two hosts: servers on either are neighbours.
resource "reflejo_network" "app" {
  name  = "app"
  hosts = ["alpha", "beta"]
  cidr  = "10.77.0.0/16"
}

# Cut off from the world beyond its host.
resource "reflejo_network" "backstage" {
  name  = "backstage"
  hosts = ["alpha"]
  cidr  = "10.78.0.0/24"
  nat   = false
}
