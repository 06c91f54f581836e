#!/bin/bash
# Give each workload of the cluster the credentials of a role of its own, which last an hour. A timer repeats it: botocore
# reads the file anew, by `cat`, as soon as what it holds has ten minutes left.
set -euo pipefail
export AWS_DEFAULT_REGION=$HP_REGION KUBECONFIG=/root/.kube/config PATH=/usr/local/bin:$PATH

assume() { # role, session
    aws sts assume-role --role-arn "$1" --role-session-name "$2" --duration-seconds 3600 --output text \
        --query 'Credentials.[AccessKeyId, SecretAccessKey, SessionToken, Expiration]'
}
give() { # role, namespace, Secret
    local answer key secret token end
    # A new role is not known everywhere at once.
    local deadline=$((SECONDS + ${HP_ASSUME_SECONDS:-120}))
    until answer=$(assume "$1" "$3"); do
        ((SECONDS < deadline)) || { echo "the host may not take the role $1 -> run \`pulumi up\` again" >&2; exit 1; }
        sleep 5
    done
    read -r key secret token end <<<"$answer"
    # Through standard input: an argument would be visible in the list of processes.
    printf '{"Version": 1, "AccessKeyId": "%s", "SecretAccessKey": "%s", "SessionToken": "%s", "Expiration": "%s"}\n' \
        "$key" "$secret" "$token" "$end" |
        kubectl -n "$2" create secret generic "$3" --dry-run=client --output yaml \
            --from-file=credentials.json=/dev/stdin --from-literal=config="[default]
region = $HP_REGION
credential_process = cat /var/run/secrets/health-predict/aws/credentials.json" |
        kubectl apply --server-side --force-conflicts --field-manager=health-predict-credentials -f - >/dev/null
}
give "$HP_ROLE_SERVICE" health-predict readmission-api-aws
give "$HP_ROLE_MLFLOW" health-predict-tracking mlflow-aws
give "$HP_ROLE_BACKUP" health-predict-tracking backup-aws
give "$HP_ROLE_TASKS" kubeflow health-predict-aws
