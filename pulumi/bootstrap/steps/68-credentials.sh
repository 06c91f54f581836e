#!/bin/bash
# Short-lived credentials for each workload, before the first of them starts.
set -euo pipefail
for namespace in kubeflow health-predict health-predict-tracking; do
    # What they are like is said by their manifests, which come later.
    kubectl get namespace "$namespace" >/dev/null 2>&1 || kubectl create namespace "$namespace" >/dev/null
done
exec "$HP_ROOT/pulumi/bootstrap/credentials.sh"
