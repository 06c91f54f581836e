#!/bin/bash
# What this host runs, by digest, and the settings of this stack: an overlay over k8s/overlays/aws.
set -euo pipefail
digest() { # repository URL
    aws ecr describe-images --repository-name "${1#*/}" --image-ids "imageTag=$HP_IMAGE_TAG" \
        --query 'imageDetails[0].imageDigest' --output text 2>"$HP_STATE/ecr" || {
        cat "$HP_STATE/ecr" >&2
        echo "$1 has no image tagged $HP_IMAGE_TAG -> \`make images PUSH=${1%/*}\` from the checkout of this stack, or" \
            "\`pulumi config set images build\`, or set image_tag to one that is there" >&2
        exit 1
    }
}
pipeline=$HP_IMAGE_PIPELINE@$(digest "$HP_IMAGE_PIPELINE")
mlflow=$(digest "$HP_IMAGE_MLFLOW")

# A certificate that somebody put there makes the endpoint speak TLS (k8s/tls); without one its port stays closed.
components=
if kubectl --request-timeout=20s -n health-predict get secret readmission-api-tls >/dev/null 2>&1; then
    components="components: [../../../tls]"
fi
overlay=$HP_ROOT/k8s/overlays/host/aws
mkdir -p "$overlay"
cat >"$overlay/kustomization.yaml" <<END
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../../aws]
$components
images:
  - {name: health-predict/mlflow, newName: $HP_IMAGE_MLFLOW, digest: $mlflow}
configMapGenerator:
  - name: mlflow
    namespace: health-predict-tracking
    behavior: merge
    literals:
      - ARTIFACTS=s3://$HP_BUCKET/mlflow
      - BACKUPS=s3://$HP_BUCKET/backups
      - AWS_DEFAULT_REGION=$HP_REGION
generatorOptions: {disableNameSuffixHash: true}
END
cp "$HP_ROOT/k8s/overlays/aws/settings.env" "$overlay/settings.env"
cat >"$HP_STATE/settings.env.new" <<END
HEALTH_PREDICT_PROFILE=aws
HEALTH_PREDICT_STORAGE_URI=s3://$HP_BUCKET/health-predict
HEALTH_PREDICT_DATA_COPY=s3://$HP_BUCKET/raw/diabetic_data.csv
HEALTH_PREDICT_IMAGE_REGISTRY=$HP_IMAGE_READMISSION
HEALTH_PREDICT_GIT_COMMIT=$HP_GIT_COMMIT
HEALTH_PREDICT_NOTIFY=["$HP_TOPIC"]
END
mv "$HP_STATE/settings.env.new" "$HP_STATE/settings.env"
echo "$pipeline" >"$HP_STATE/pipeline-image.new"
mv "$HP_STATE/pipeline-image.new" "$HP_STATE/pipeline-image"
