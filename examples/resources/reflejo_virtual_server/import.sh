# By name if only one host has it, by host and name, or by id.
terraform import reflejo_virtual_server.db orders-a
terraform import reflejo_virtual_server.db alpha/orders-a
terraform import reflejo_virtual_server.db 8f2c1a52-3a0c-4f43-8a63-0f6f6f2b9c10
