list "reflejo_snapshot" "all" {
  provider = reflejo
}

list "reflejo_snapshot" "alpha" {
  provider         = reflejo
  include_resource = true

  config {
    hosts = ["alpha"]
  }
}
