#!/bin/bash
# Run every step in order, under a lock. Each step may be run again at any time, from any state a kill or a reboot
# leaves, so there is nothing to resume: a step that has nothing to do takes a moment. The ready marker comes last.
# With the name of a step (`run.sh 60-registry`): that one alone.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
state=/var/lib/health-predict

report() { # step, status
    printf 'step=%s status=%s at=%s bundle=%s\n' "$1" "$2" "$(date -u +%FT%TZ)" "$HP_BUNDLE_SHA256" >"$state/state.new"
    mv "$state/state.new" "$state/state"
    if [[ -n ${NOTIFY_SOCKET:-} ]]; then systemd-notify --status="$1: $2"; fi
    echo "$1: $2"
}

set -a
# shellcheck source=/dev/null
source "$here/versions.env"
# shellcheck source=/dev/null
source /etc/health-predict/host.env
set +a
export AWS_DEFAULT_REGION=$HP_REGION HP_STATE=$state KUBECONFIG=/root/.kube/config PATH=/usr/local/bin:$PATH
step_seconds=${HP_STEP_SECONDS:-1200}
HP_ROOT=$(readlink -f "$here/../..")
export HP_ROOT

mkdir -p "$state"
exec 9>"$state/lock"
flock -w 1800 9 || { echo "another bootstrap has been running for half an hour -> reboot the host" >&2; exit 75; }
if (($# == 0)); then rm -f "$state/ready" "$state/failure"; fi

for script in "$here"/steps/${1:-*}.sh; do
    step=$(basename "$script" .sh)
    report "$step" begins
    code=0
    # The lock is not for the children: a daemon that a step starts would keep it.
    timeout --kill-after=30 "$step_seconds" bash "$script" 2>"$state/stderr" 9>&- || code=$?
    cat "$state/stderr" >&2
    if ((code)); then
        ((code == 124 || code == 137)) && echo "stopped after $step_seconds s" >>"$state/stderr"
        {
            echo "step $step failed with exit code $code:"
            tail -n 25 "$state/stderr"
        } >"$state/failure.new"
        mv "$state/failure.new" "$state/failure"
        report "$step" failed
        exit 1
    fi
    report "$step" finished
done

if (($#)); then exit; fi
printf 'bundle=%s\n' "$HP_BUNDLE_SHA256" >"$state/ready.new"
sync "$state/ready.new"
mv "$state/ready.new" "$state/ready"
report all ready
