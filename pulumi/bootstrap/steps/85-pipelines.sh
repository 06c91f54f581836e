#!/bin/bash
# Register the compiled pipelines, and the schedule of monitoring, with Kubeflow Pipelines, from inside the cluster.
set -euo pipefail
image=$(<"$HP_STATE/pipeline-image")
job=health-predict-register-$(printf '%s%s' "$HP_BUNDLE_SHA256" "$image${HP_MONITOR:-}" | sha256sum | cut -c1-10)
settings=$HP_STATE/register.yaml

status() { kubectl -n kubeflow get job "$job" --output "jsonpath={.status.conditions[?(@.status=='True')].type}" 2>/dev/null || true; }

if [[ $(status) == *Failed* ]]; then kubectl -n kubeflow delete job "$job" --wait >/dev/null; fi
cat >"$settings" <<END
apiVersion: batch/v1
kind: Job
metadata: {name: $job, namespace: kubeflow}
spec:
  backoffLimit: 3
  activeDeadlineSeconds: 600
  template:
    spec:
      restartPolicy: Never
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: register
          image: $image
          command: [sh, -c]
          args:
            - >-
              health-predict pipeline upload --on aws &&
              health-predict pipeline schedule monitoring --cron "\$MONITOR" --on aws &&
              health-predict pipeline schedule readmission --cron "" --on aws
          # Not all settings: what a command has in its environment goes with its runs, past later changes.
          env:
            - {name: MONITOR, value: "${HP_MONITOR:-}"}
$(for name in KFP_HOST PIPELINE_IMAGE GIT_COMMIT; do
    echo "            - {name: HEALTH_PREDICT_$name, valueFrom: {configMapKeyRef: {name: health-predict-settings, key: HEALTH_PREDICT_$name}}}"
done)
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
          resources: {requests: {cpu: 100m, memory: 256Mi}, limits: {cpu: "1", memory: 1Gi}}
END
kubectl apply -f "$settings" >/dev/null
deadline=$((SECONDS + 700))
while true; do
    case $(status) in
        *Complete*) exit 0 ;;
        *Failed*) break ;;
    esac
    ((SECONDS < deadline)) || break
    sleep 3
done
kubectl -n kubeflow logs "job/$job" --tail=20 >&2 || true
echo "the pipelines could not be registered -> \`kubectl -n kubeflow describe job $job\`" >&2
exit 1
