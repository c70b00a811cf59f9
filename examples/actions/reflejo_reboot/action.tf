action "reflejo_reboot" "db" {
  config {
    server_id        = reflejo_virtual_server.db.id
    shutdown_timeout = "2m"
  }
}

# terraform apply -invoke=action.reflejo_reboot.db
