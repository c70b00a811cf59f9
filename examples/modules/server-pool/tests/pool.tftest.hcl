# Runs without hosts: terraform test
mock_provider "reflejo" {
  mock_resource "reflejo_virtual_server" {
    defaults = {
      addresses = { eth0 = "192.0.2.10" }
    }
  }
}

variables {
  name  = "web"
  image = "debian"
}

run "hosts_in_turn" {
  command = plan

  variables {
    size  = 3
    hosts = ["alpha", "beta"]
  }

  assert {
    condition     = [for name in ["web-0", "web-1", "web-2"] : reflejo_virtual_server.this[name].host] == ["alpha", "beta", "alpha"]
    error_message = "The hosts are not used in turn."
  }
}

run "outputs" {
  variables {
    size               = 2
    first_boot         = "#!/bin/sh\ntouch /made"
    first_boot_version = "1"
  }

  assert {
    condition     = output.addresses == { "web-0" = "192.0.2.10", "web-1" = "192.0.2.10" }
    error_message = "Addresses are not those of the servers."
  }

  assert {
    condition     = alltrue([for s in reflejo_virtual_server.this : s.labels["pool"] == "web"])
    error_message = "Servers don't say which pool they are of."
  }
}

run "wrong_size" {
  command = plan

  variables {
    size = 1.5
  }

  expect_failures = [var.size]
}
