# From a registry, fixed to one content by its digest.
resource "reflejo_image" "debian" {
  name     = "debian"
  hosts    = ["alpha", "beta", "gamma"]
  source   = "oci://registry.example/debian:12"
  checksum = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
}

# From a file that is on the hosts already, such as the output of mmdebstrap.
resource "reflejo_image" "ours" {
  name   = "ours-12-7"
  hosts  = ["alpha"]
  source = "host:/var/lib/reflejo/images/ours-12-7.tar.zst"
}
