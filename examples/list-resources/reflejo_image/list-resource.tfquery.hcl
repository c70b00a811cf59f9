list "reflejo_image" "all" {
  provider = reflejo
}

list "reflejo_image" "alpha" {
  provider         = reflejo
  include_resource = true

  config {
    hosts = ["alpha"]
  }
}
