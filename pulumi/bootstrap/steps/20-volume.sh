#!/bin/bash
# Mount the data volume at /data. It is formatted only when it is certainly blank: nothing known on it, and zeroes.
set -euo pipefail
device=/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_${HP_VOLUME_ID/-/}
started="$HP_STATE/formatting-$HP_VOLUME_ID"
blank_bytes=$((16 * 1024 * 1024))

fail() {
    echo "$1 -> $2" >&2
    exit 1
}

deadline=$((SECONDS + ${HP_VOLUME_SECONDS:-300}))
until [[ -b $device ]]; do
    ((SECONDS < deadline)) || fail "the data volume $HP_VOLUME_ID is not attached (no $device)" \
        "attach it, or run \`pulumi up\` again, which does"
    sleep 1
done
device=$(readlink -f "$device")

# A volume that was enlarged has its new size a moment later. Here in bytes, since a test's disk is a small one.
wanted=${HP_VOLUME_BYTES:-$((${HP_DATA_GIB:-0} << 30))}
until (($(blockdev --getsize64 "$device") >= wanted)); do
    ((SECONDS < deadline)) || fail "the data volume $HP_VOLUME_ID has not grown to $wanted bytes yet" \
        "run \`pulumi up\` again in a minute"
    sleep 1
done

code=0
known=$(blkid --probe --output export "$device") || code=$?
kind=$(sed -n 's/^TYPE=//p' <<<"$known")
if ((code == 2)) || [[ -e $started ]]; then
    if [[ ! -e $started ]]; then
        cmp --quiet --bytes="$blank_bytes" "$device" /dev/zero ||
            fail "the data volume $HP_VOLUME_ID holds something unknown" \
                "it was not formatted; look at it, and wipe it with \`wipefs\` and \`blkdiscard\` if it may go"
        # From here until the file system is complete, what is on the volume is ours and half-finished.
        touch "$started"
        sync "$started"
    fi
    mkfs.ext4 -q -F -m 1 -L health-predict "$device"
    sync "$device"
    rm "$started"
elif ((code != 0)); then
    fail "the data volume $HP_VOLUME_ID cannot be read (blkid: $code)" "look at it with \`blkid -p $device\`"
elif [[ $kind != ext4 ]]; then
    fail "the data volume $HP_VOLUME_ID holds ${kind:-a partition table}, not ext4" \
        "it was not touched; attach the right volume, or wipe this one yourself"
fi

uuid=$(blkid --probe --match-tag UUID --output value "$device")
if mountpoint --quiet /data; then
    mounted=$(findmnt --noheadings --output SOURCE /data)
    [[ $(readlink -f "$mounted") == "$device" ]] ||
        fail "/data is mounted from $mounted, not from $device" "unmount it: \`umount /data\`"
    resize2fs "$device" >&2 # the volume may have grown
else
    # fsck and mount on every boot, before Docker; nofail, so that a host without its volume still takes sessions.
    { grep -vs '[[:space:]]/data[[:space:]]' /etc/fstab || true; } >/etc/fstab.new
    echo "UUID=$uuid /data ext4 defaults,noatime,nofail,x-systemd.device-timeout=120 0 2" >>/etc/fstab.new
    mv /etc/fstab.new /etc/fstab
    systemctl daemon-reload
    mkdir -p /data
    code=0
    e2fsck -f -p "$device" >&2 || code=$?
    ((code < 4)) || fail "the file system of $HP_VOLUME_ID is damaged" "take a snapshot, then \`e2fsck $device\`"
    resize2fs "$device" >&2
    mount -t ext4 -o noatime "$device" /data
fi
install -d -m 700 /data/secrets /data/pv
for claim in postgres mysql seaweedfs; do
    # As Kind's own provisioner makes them, for servers of any user. Who is not root does not get past /data/pv.
    [[ -d /data/pv/$claim ]] || install -d -m 777 "/data/pv/$claim"
done
