#!/bin/sh
# Runs once, as root, when the server starts for the first time.
set -eu
echo "made by Terraform" >/etc/motd
