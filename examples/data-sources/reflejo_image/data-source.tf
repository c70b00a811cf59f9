# An image that somebody else brings to the hosts.
data "reflejo_image" "debian" {
  name = "debian"
}

resource "reflejo_virtual_server" "web" {
  name  = "web"
  image = data.reflejo_image.debian.id
}
