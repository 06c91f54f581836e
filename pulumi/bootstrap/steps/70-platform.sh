#!/bin/bash
# Kubeflow Pipelines, Postgres, MLflow and the prediction service.
set -euo pipefail
kept=/data/secrets/postgres.json

# Kind's provisioner names folders anew with every cluster. These volumes are there before they are claimed, and
# lead to the same folders of /data/pv from any cluster.
volume() { # namespace, claim, folder
    cat <<END
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: health-predict-$3}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 20Gi}
  persistentVolumeReclaimPolicy: Retain
  storageClassName: standard
  claimRef: {apiVersion: v1, kind: PersistentVolumeClaim, namespace: $1, name: $2}
  hostPath: {path: /var/local-path-provisioner/$3, type: Directory}
END
}
{
    volume health-predict data-postgres-0 postgres
    volume kubeflow mysql-pv-claim mysql
    volume kubeflow seaweedfs-pvc seaweedfs
} >"$HP_STATE/volumes.yaml"
# Only new ones: the cluster writes the claim's identity into those it has bound.
kubectl create -f "$HP_STATE/volumes.yaml" 2>"$HP_STATE/volumes" >/dev/null ||
    if grep --invert-match --quiet AlreadyExists "$HP_STATE/volumes"; then cat "$HP_STATE/volumes" >&2 && exit 1; fi

# Kinds come before their objects.
version=$(sed -n 's/.*platform-agnostic?ref=//p' "$HP_ROOT/k8s/kfp/kustomization.yaml")
kinds="https://github.com/kubeflow/pipelines//manifests/kustomize/cluster-scoped-resources?ref=$version"
kubectl apply --server-side --force-conflicts -k "$kinds" >/dev/null
kubectl wait --for=condition=Established crd/applications.app.k8s.io --timeout=60s >/dev/null
kubectl apply --server-side --force-conflicts -k "$HP_ROOT/k8s/kfp" >/dev/null

# The password belongs to the data on the volume, not to the cluster: a new cluster gets the one it had.
if [[ -e $kept ]] && ! kubectl -n health-predict get secret postgres >/dev/null 2>&1; then
    kubectl apply --server-side -f "$HP_ROOT/k8s/base/namespace.yaml" >/dev/null
    kubectl apply --server-side -f "$kept" >/dev/null
fi
PIPELINE_IMAGE=$(<"$HP_STATE/pipeline-image") SETTINGS=$HP_STATE/settings.env WAIT=900 \
    "$HP_ROOT/k8s/up" "$HP_ROOT/k8s/overlays/host/aws"
kubectl -n kubeflow wait --for=condition=Available deployment --all --timeout=900s >/dev/null
