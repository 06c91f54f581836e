#!/bin/bash
# Bring a model into service, where none is. The champion, as on a new host with the old data, or else a first one.
set -euo pipefail
image=$(<"$HP_STATE/pipeline-image")

serving() { # the version that was brought into service, while pods answer by it
    kubectl --request-timeout=20s -n health-predict get deployment readmission-api --output \
        'jsonpath={.status.readyReplicas} {.metadata.annotations.health-predict/model-version}' 2>/dev/null |
        sed -n 's/^[1-9][0-9]* //p' || true
}
champion() { # of the one registered model, whatever the data contract calls it
    curl --silent --show-error --max-time 30 --retry 5 --retry-all-errors \
        'http://127.0.0.1:5050/api/2.0/mlflow/registered-models/search?max_results=100' |
        python3 -c '
import json, sys
try:
    models = json.load(sys.stdin).get("registered_models", [])
except ValueError:
    models = []
found = [one["version"] for model in models for one in model.get("aliases", []) if one["alias"] == "champion"]
print(*found[:1])
'
}

if [[ -n $(serving) ]]; then exit 0; fi
version=$(champion)
if [[ -n $version ]]; then
    pipeline=(deployment -p "model_version=$version")
elif [[ $HP_FIRST_RUN == true ]]; then
    pipeline=(readmission)
else
    exit 0
fi

# The run belongs to Kubeflow Pipelines; this job only waits for it. After a reboot the same job is waited for.
job=health-predict-first-$(printf '%s ' "$image" "${pipeline[@]}" | sha256sum | cut -c1-10)
status() { kubectl -n kubeflow get job "$job" --output "jsonpath={.status.conditions[?(@.status=='True')].type}" 2>/dev/null || true; }
if [[ $(status) == *Failed* || $(status) == *Complete* ]]; then kubectl -n kubeflow delete job "$job" --wait >/dev/null; fi
cat >"$HP_STATE/first.yaml" <<END
apiVersion: batch/v1
kind: Job
metadata: {name: $job, namespace: kubeflow}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: run
          image: $image
          command: [health-predict, pipeline, run, $(printf '"%s", ' "${pipeline[@]}")--on, aws]
          # Not all settings: what a command has in its environment goes with its run, and the stages read theirs.
          env:
$(for name in KFP_HOST PIPELINE_IMAGE GIT_COMMIT; do
    echo "            - {name: HEALTH_PREDICT_$name, valueFrom: {configMapKeyRef: {name: health-predict-settings, key: HEALTH_PREDICT_$name}}}"
done)
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
          resources: {requests: {cpu: 50m, memory: 256Mi}, limits: {cpu: "1", memory: 1Gi}}
END
kubectl apply -f "$HP_STATE/first.yaml" >/dev/null
while true; do
    case $(status) in
        *Complete*) break ;;
        *Failed*)
            kubectl -n kubeflow logs "job/$job" --tail=20 >&2 || true
            echo "the run of ${pipeline[*]} failed -> correct that and run \`pulumi up\` again" >&2
            exit 1
            ;;
    esac
    sleep 3
done
deadline=$((SECONDS + ${HP_ANSWER_SECONDS:-120}))
until version=$(serving) && [[ -n $version ]]; do
    ((SECONDS < deadline)) || {
        kubectl -n kubeflow logs "job/$job" --tail=20 >&2 || true
        echo "the run ended and no model serves -> its gates refused the model: see http://127.0.0.1:8080, forwarded with" \
            "\`pulumi stack output commands\`" >&2
        exit 1
    }
    sleep 3
done
echo "version $version answers"
