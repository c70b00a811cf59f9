data "reflejo_host" "alpha" {
  name = "alpha"
}

check "alpha_has_room" {
  assert {
    condition     = data.reflejo_host.alpha.free.memory_bytes >= 8 * pow(1024, 3)
    error_message = "alpha has less than 8 GiB of memory left."
  }
}
