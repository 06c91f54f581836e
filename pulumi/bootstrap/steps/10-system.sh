#!/bin/bash
# What the system lacks, and the limits that Kubernetes in a container needs.
set -euo pipefail
for command in git:git iptables:iptables-nft unzip:unzip; do
    if ! command -v "${command%%:*}" >/dev/null; then
        dnf install --quiet --assumeyes "${command##*:}"
    fi
done
settings=/etc/sysctl.d/90-health-predict.conf
printf 'fs.inotify.max_user_watches = 524288\nfs.inotify.max_user_instances = 512\n' >"$settings.new"
mv "$settings.new" "$settings"
sysctl --quiet --load="$settings"
