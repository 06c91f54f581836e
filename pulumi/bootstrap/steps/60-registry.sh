#!/bin/bash
# ECR credentials for the node's kubelet. They last twelve hours; a timer runs this step again every six.
set -euo pipefail
name=$(sed -n 's/^name:[[:space:]]*//p' "$HP_ROOT/k8s/kind/cluster.yaml")
registry=${HP_IMAGE_PIPELINE%%/*}
token=$(aws ecr get-login-password)
auth=$(printf 'AWS:%s' "$token" | base64 --wrap=0)
# Through standard input: an argument would be visible in the list of processes.
printf '{"auths": {"%s": {"auth": "%s"}}}\n' "$registry" "$auth" |
    docker exec --interactive "$name-control-plane" sh -c \
        'umask 077; cat > /var/lib/kubelet/config.json.new && mv /var/lib/kubelet/config.json.new /var/lib/kubelet/config.json'
