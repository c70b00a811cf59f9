import {
  to = reflejo_backup.before
  identity = {
    id = "3f0f4a86-7f2b-4d5e-9a4e-2b8f6f0c7d21"
  }
}
