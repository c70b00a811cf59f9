#!/bin/sh
# Runs once, when the server starts for the first time.
set -eu
echo "one of six servers" >/etc/motd
