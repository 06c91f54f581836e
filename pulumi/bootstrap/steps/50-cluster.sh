#!/bin/bash
# The Kind cluster. A changed configuration never replaces a running cluster by itself.
set -euo pipefail
config=$HP_STATE/cluster.yaml
certificates=/etc/health-predict/certs.d
mkdir -p "$certificates"
# The API server's port is fixed, so that it can be forwarded.
sed -e 's|hostPath: DATA|hostPath: /data|' -e "s|hostPath: REGISTRY|hostPath: $certificates|" \
    -e 's|apiServerAddress: 127.0.0.1|apiServerAddress: 127.0.0.1, apiServerPort: 6443|' \
    "$HP_ROOT/k8s/kind/cluster.yaml" >"$config"
name=$(sed -n 's/^name:[[:space:]]*//p' "$config")
node=$name-control-plane
hash=$({ cat "$config"; echo "$KIND_VERSION"; } | sha256sum | cut -c1-12)
created=$HP_STATE/cluster

if kind get clusters 2>/dev/null | grep --quiet --line-regexp "$name"; then
    if [[ ! -e $created ]]; then
        echo "the creation of cluster $name was interrupted; starting over"
        kind delete cluster --name "$name"
    elif [[ $(<"$created") != "$hash" ]]; then
        if [[ ${HP_RECREATE_CLUSTER:-} != "$hash" ]]; then
            echo "the cluster was created from another k8s/kind/cluster.yaml; it was left as it is -> to replace it (data" \
                "in /data/pv stay): \`pulumi config set recreate_cluster $hash && pulumi up\`" >&2
            exit 1
        fi
        rm "$created"
        kind delete cluster --name "$name"
    fi
else
    rm -f "$created"
fi
if [[ ! -e $created ]]; then
    kind create cluster --config "$config" --wait 300s
    echo "$hash" >"$created.new"
    sync "$created.new"
    mv "$created.new" "$created"
fi
# After a reboot the node may be stopped.
if [[ $(docker inspect --format '{{.State.Running}}' "$node") != true ]]; then
    docker start "$node" >/dev/null
fi
kind export kubeconfig --name "$name" --kubeconfig "$KUBECONFIG"
deadline=$((SECONDS + 300))
until kubectl get --raw /readyz >/dev/null 2>&1; do
    ((SECONDS < deadline)) || { echo "the API server does not answer -> \`docker logs $node\`" >&2; exit 1; }
    sleep 2
done
kubectl wait --for=condition=Ready node --all --timeout=300s
