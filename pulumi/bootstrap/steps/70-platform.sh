#!/bin/bash
# Kubeflow Pipelines, Postgres, MLflow and the prediction service.
set -euo pipefail
PIPELINE_IMAGE=$(<"$HP_STATE/pipeline-image")
export PIPELINE_IMAGE SETTINGS=$HP_STATE/settings.env KEPT=/data/secrets
exec "$HP_ROOT/k8s/platform" "$HP_ROOT/k8s/overlays/host/aws"
