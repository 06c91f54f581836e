#!/bin/bash
# Run every step in order, under a lock. Each step may be run again at any time, from any state a kill or a reboot
# leaves, so there is nothing to resume: a step that has nothing to do takes a moment. The ready marker comes last.
# With the name of a step (`run.sh 60-registry`): that one alone.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
state=/var/lib/health-predict

report() { # step, status, what it does
    printf 'step=%s status=%s at=%s bundle=%s doing=%s\n' "$1" "$2" "$(date -u +%FT%TZ)" "$HP_BUNDLE_SHA256" \
        "${3:-$1 $2}" >"$state/state.new"
    mv "$state/state.new" "$state/state"
    if [[ -n ${NOTIFY_SOCKET:-} ]]; then systemd-notify --status="$1: $2"; fi
    echo "$1: $2"
}

# What a step does: the first sentence of its comment.
purpose() { sed -n '2{s/^# //;s/[.:;] .*//;s/\.$//;p}' "$1"; }

# What may hang is stopped; a build and a first training take their time.
limit() {
    case $1 in
        62-build | 95-first-model) echo "${HP_LONG_STEP_SECONDS:-5400}" ;;
        *) echo "${HP_STEP_SECONDS:-1200}" ;;
    esac
}

set -a
# shellcheck source=/dev/null
source "$here/versions.env"
# shellcheck source=/dev/null
source /etc/health-predict/host.env
set +a
export AWS_DEFAULT_REGION=$HP_REGION HP_STATE=$state KUBECONFIG=/root/.kube/config PATH=/usr/local/bin:$PATH
HP_ROOT=$(readlink -f "$here/../..")
export HP_ROOT

mkdir -p "$state"
exec 9>"$state/lock"
flock -w 7000 9 || { echo "another bootstrap has been running for two hours -> reboot the host" >&2; exit 75; }
if (($# == 0)); then rm -f "$state/ready" "$state/failure"; fi

for script in "$here"/steps/${1:-*}.sh; do
    step=$(basename "$script" .sh)
    report "$step" begins "$(purpose "$script")"
    step_seconds=$(limit "$step")
    begin=$SECONDS
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
    report "$step" "finished after $((SECONDS - begin)) s"
done

if (($#)); then exit; fi
printf 'bundle=%s\n' "$HP_BUNDLE_SHA256" >"$state/ready.new"
sync "$state/ready.new"
mv "$state/ready.new" "$state/ready"
report all ready
