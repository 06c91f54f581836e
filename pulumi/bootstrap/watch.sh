#!/bin/bash
# Tell CloudWatch how full the disks are, and how many backups and runs failed since it was told last. Alarms of the
# stack watch these metrics (pulumi/infra/alarms.py).
set -euo pipefail
export AWS_DEFAULT_REGION=$HP_REGION KUBECONFIG=/root/.kube/config PATH=/usr/local/bin:$PATH
told=/var/lib/health-predict/watched
now=$(date -u +%FT%TZ)
since=$(cat "$told" 2>/dev/null || echo "$now")

put() { # metric, unit, value
    aws cloudwatch put-metric-data --namespace health-predict --metric-data \
        "MetricName=$1,Unit=$2,Value=$3,Dimensions=[{Name=Stack,Value=$HP_STACK}]"
}
# after: of lines "time ..." those since the last time, counted. Times in ISO 8601 sort as texts.
after() { awk -v since="$since" '$1 > since {found++} END {print found + 0}'; }

put DiskUsed Percent "$(df --output=pcent / /data | tr -dc '0-9\n' | sort -n | tail -1)"
jobs=$(kubectl -n health-predict-tracking get jobs --request-timeout=30s --output \
    "jsonpath={range .items[*]}{.status.conditions[?(@.type=='Failed')].lastTransitionTime}{'\n'}{end}")
runs=$(kubectl -n kubeflow get workflows.argoproj.io --request-timeout=30s --output \
    "jsonpath={range .items[*]}{.status.finishedAt} {.status.phase}{'\n'}{end}")
put FailedBackups Count "$(after <<<"$jobs")"
put FailedRuns Count "$({ grep -E ' (Failed|Error)$' <<<"$runs" || true; } | after)"
echo "$now" >"$told.new"
mv "$told.new" "$told"
