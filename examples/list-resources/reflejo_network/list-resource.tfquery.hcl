list "reflejo_network" "all" {
  provider = reflejo
}

list "reflejo_network" "alpha" {
  provider         = reflejo
  include_resource = true

  config {
    hosts = ["alpha"]
  }
}
