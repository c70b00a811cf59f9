#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl enable reflejo.service >/dev/null 2>&1 || true
	# An upgrade changes the agent; its servers run on. Without a certificate this does nothing.
	systemctl restart reflejo.service || true
fi
exit 0
