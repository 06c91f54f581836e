#!/bin/bash
# The Docker daemon, which starts only where /data is mounted.
set -euo pipefail
mountpoint --quiet /data || { echo "/data is not mounted -> see step 20-volume" >&2; exit 1; }
mkdir -p /etc/docker
printf '{"log-driver": "local", "log-opts": {"max-size": "20m", "max-file": "3"}}\n' >/etc/docker/daemon.json.new
if cmp --quiet /etc/docker/daemon.json.new /etc/docker/daemon.json; then
    rm /etc/docker/daemon.json.new
else
    mv /etc/docker/daemon.json.new /etc/docker/daemon.json
fi
# A newer version in /usr/local/bin takes over at the next boot: restarting now would stop the whole platform.
systemctl enable --now --quiet docker.service
deadline=$((SECONDS + 120))
until docker info >/dev/null 2>&1; do
    ((SECONDS < deadline)) || { echo "Docker does not answer -> \`journalctl -u docker\`" >&2; exit 1; }
    sleep 1
done
