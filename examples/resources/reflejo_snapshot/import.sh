# By name if only one server has a snapshot of this name, by host and name, or by id.
terraform import reflejo_snapshot.before before-upgrade
terraform import reflejo_snapshot.before alpha/before-upgrade
terraform import reflejo_snapshot.before 3f0f4a86-7f2b-4d5e-9a4e-2b8f6f0c7d21
