# Applies the example to the hosts of the environment, resizes, and destroys it again.
variables {
  debian      = "oci://registry.example/debian:12"
  debian_next = "oci://registry.example/debian:13"
  hello       = "oci://registry.example/hello:1"
}

run "six_servers" {
  assert {
    condition     = length(output.addresses) == 6
    error_message = "There are not six servers."
  }

  assert {
    condition     = reflejo_virtual_server.measured.state == "running"
    error_message = "The server does not run."
  }
}

run "resize" {
  variables {
    cores  = 1
    memory = "512MiB"
    disk   = "12GiB"
    egress = "80mbit"
  }

  assert {
    condition     = reflejo_virtual_server.measured.id == run.six_servers.measured_id
    error_message = "The server was replaced."
  }
}
