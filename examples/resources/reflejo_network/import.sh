# By name, by its name on one host, or by id; always with all its hosts.
terraform import reflejo_network.app app
terraform import reflejo_network.app alpha/app
terraform import reflejo_network.app 0d8f5f4e-6f0e-4d0b-9a53-7f2f6c6f1a11
