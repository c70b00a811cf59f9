#!/bin/sh
# The test machine's only job: run the commands of the second disk, one after the other,
# tell how each ended, power off. Output goes to one virtio port, exit codes to another.
ports=/dev/virtio-ports
n=0
while [ ! -e $ports/testvm.output ] || [ ! -e $ports/testvm.control ] || [ ! -e /dev/disk/by-label/testvm ]; do
	n=$((n + 1))
	[ $n -gt 600 ] && exec systemctl poweroff -ff
	sleep 0.1
done
# Opened once: a port admits one writer at a time, and a command may leave children.
exec 3>$ports/testvm.output 4>$ports/testvm.control </dev/null
mkdir -p /testvm
mount -o ro /dev/disk/by-label/testvm /testvm >&3 2>&1 || exec systemctl poweroff -ff
cd /testvm || exit 1
echo ready >&4
for command in /testvm/.commands/*; do
	/bin/sh "$command" >&3 2>&3 4>&-
	echo "exit $?" >&4
done
systemctl poweroff -ff
