import {
  to = reflejo_virtual_server.db
  identity = {
    id = "8f2c1a52-3a0c-4f43-8a63-0f6f6f2b9c10"
  }
}
