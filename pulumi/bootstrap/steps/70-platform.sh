#!/bin/bash
# Kubeflow Pipelines, Postgres, MLflow and the prediction service.
set -euo pipefail
kept=/data/secrets/postgres.json

# Kinds must be known before objects of them are: a first pass may fail, a few may not.
for attempt in 1 2 3 4 5; do
    kubectl apply --server-side --force-conflicts -k "$HP_ROOT/k8s/kfp" >/dev/null && break
    ((attempt < 5)) || { echo "Kubeflow Pipelines cannot be applied -> see the lines above" >&2; exit 1; }
    kubectl wait --for=condition=Established crd --all --timeout=60s >/dev/null
done

# The password belongs to the data on the volume, not to the cluster: a new cluster gets the one it had.
if [[ -e $kept ]] && ! kubectl -n health-predict get secret postgres >/dev/null 2>&1; then
    kubectl apply --server-side -f "$HP_ROOT/k8s/base/namespace.yaml" >/dev/null
    kubectl apply --server-side -f "$kept" >/dev/null
fi
PIPELINE_IMAGE=$(<"$HP_STATE/pipeline-image") SETTINGS=$HP_STATE/settings.env WAIT=900 \
    "$HP_ROOT/k8s/up" "$HP_ROOT/k8s/overlays/host/aws"
kubectl -n kubeflow wait --for=condition=Available deployment --all --timeout=900s >/dev/null
