list "reflejo_virtual_server" "all" {
  provider = reflejo
}

list "reflejo_virtual_server" "alpha" {
  provider         = reflejo
  include_resource = true

  config {
    hosts = ["alpha"]
  }
}
