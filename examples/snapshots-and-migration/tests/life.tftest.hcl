# A release that goes wrong: snapshot, trial, restore, and a move to the other host.
variables {
  debian = "oci://registry.example/debian:12"
}

run "kept_safe" {
  assert {
    condition     = reflejo_snapshot.before.state == "ready" && reflejo_backup.before[0].state == "ready"
    error_message = "The snapshot or its backup is not complete."
  }

  assert {
    condition     = reflejo_backup.before[0].checksum == reflejo_snapshot.before.checksum
    error_message = "The backup does not hold what the snapshot does."
  }
}

run "tried_on_a_clone" {
  variables {
    trial = true
  }

  assert {
    condition     = reflejo_virtual_server.trial[0].host == "alpha" && reflejo_virtual_server.trial[0].addresses["eth0"] != output.address
    error_message = "The clone is not a server of its own beside the snapshot."
  }
}

run "put_back" {
  variables {
    restore_from = run.kept_safe.snapshot
  }

  assert {
    condition     = output.id == run.kept_safe.id && output.address == run.kept_safe.address
    error_message = "The server is another one after the restore."
  }

  assert {
    condition     = reflejo_virtual_server.orders.state == "running"
    error_message = "The server does not run after the restore."
  }
}

run "moved" {
  variables {
    host         = "beta"
    restore_from = run.kept_safe.snapshot
  }

  assert {
    condition     = reflejo_virtual_server.orders.host == "beta" && reflejo_virtual_server.orders.state == "running"
    error_message = "The server does not run on beta."
  }

  assert {
    condition     = output.id == run.kept_safe.id && output.address == run.kept_safe.address
    error_message = "The server is another one after the move."
  }
}
