list "reflejo_backup" "all" {
  provider = reflejo
}

list "reflejo_backup" "alpha" {
  provider         = reflejo
  include_resource = true

  config {
    hosts = ["alpha"]
  }
}
