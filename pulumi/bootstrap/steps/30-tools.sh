#!/bin/bash
# Docker, kind and kubectl: exactly the pinned files, or none.
set -euo pipefail
download=$HP_ROOT/pulumi/bootstrap/download.sh
docker=${HP_DOCKER_URL:-https://download.docker.com/linux/static/stable/x86_64}/docker-$DOCKER_VERSION.tgz
kind=${HP_KIND_URL:-https://github.com/kubernetes-sigs/kind/releases/download}/$KIND_VERSION/kind-linux-amd64
kubectl=${HP_KUBECTL_URL:-https://dl.k8s.io/release}/$KUBECTL_VERSION/bin/linux/amd64/kubectl

place() { # file, name: whole or not at all, also where the program is running
    cmp --quiet "$1" "/usr/local/bin/$2" && return
    install -m 755 "$1" "/usr/local/bin/.$2.new"
    mv "/usr/local/bin/.$2.new" "/usr/local/bin/$2"
}

archive=$("$download" "$docker" "$DOCKER_SHA256")
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
tar -xzf "$archive" -C "$unpacked" --no-same-owner
for program in "$unpacked"/docker/*; do
    place "$program" "$(basename "$program")"
done
place "$("$download" "$kind" "$KIND_SHA256")" kind
place "$("$download" "$kubectl" "$KUBECTL_SHA256")" kubectl
