# By name, by the name on the host whose agent made it, or by id.
terraform import reflejo_backup.before before-1-4
terraform import reflejo_backup.before alpha/before-1-4
terraform import reflejo_backup.before 3f0f4a86-7f2b-4d5e-9a4e-2b8f6f0c7d21
