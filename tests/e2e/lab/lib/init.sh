#!/bin/bash
# init.sh NAME DIR PAUSE: the first process of a machine of the lab, in namespaces of its own (see common.sh).
set -euo pipefail
name=$1 dir=$2 pause=$3

mount --make-rshared /                    # what a driver mounts in a pod reaches the kubelet, and the other way round
mount -t proc -o nosuid,nodev,noexec proc /proc
hostname "$name"
bind() { mount --bind "$1" "$2"; mount --make-private "$2"; mount --make-shared "$2"; } # not a peer of where it lies: mounts would be seen twice
bind "$dir/var-lib" /var/lib
bind "$dir/var-log" /var/log
while umount -R -l /run/netns 2>/dev/null; do :; done # the lab's networks; unmounted for this machine alone
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock

# Each start of the machine is a boot of its own to whoever asks the kernel. Containers get the same by a hook, see nodes.sh.
cat /proc/sys/kernel/random/uuid >/run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id

: >"$dir/ready"
exec "$pause"
