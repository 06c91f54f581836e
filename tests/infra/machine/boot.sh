#!/bin/bash
# boot.sh MACHINE DEVICE VOLUME SCRIPT...: run SCRIPT as root of a machine of its own. Called in fresh mount, PID and
# network namespaces; they end with it, as everything on a machine does when its power goes.
set -euo pipefail
machine=$1 device=$2 volume=$3
shift 3
root=$machine/root

mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$machine/upper,workdir=$machine/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
for folder in dev run tmp; do mount -t tmpfs tmpfs "$root/$folder"; done
chmod 1777 "$root/tmp"
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9; do
    IFS=: read -r name major minor <<<"$node"
    mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done
ln -s /proc/self/fd "$root/dev/fd"
if [[ $device != none ]]; then
    mknod "$root/dev/$(basename "$device")" b 7 "${device#/dev/loop}"
    mkdir -p "$root/dev/disk/by-id"
    ln -s "/dev/$(basename "$device")" "$root/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_$volume"
fi
# Containers do not run when a machine comes up.
find "$root/var/lib/stub-docker" -type f -exec sh -c 'echo false >"$1"' _ {} \; 2>/dev/null || true
exec chroot "$root" /usr/bin/env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"
