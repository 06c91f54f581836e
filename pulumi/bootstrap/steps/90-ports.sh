#!/bin/bash
# The endpoint's port, opened on request: Kind listens on loopback, a socket on the host's address hands through to it.
# It speaks TLS then, or it stays closed. The others were to be opened once, and are closed where they still are.
set -euo pipefail
wanted=${HP_OPEN_PORTS:-}
if [[ -n $wanted ]] && ! kubectl --request-timeout=20s -n health-predict get secret readmission-api-tls >/dev/null 2>&1; then
    echo "the endpoint has no certificate, so its port stays closed -> put one into the Secret readmission-api-tls" \
        "(docs/kubernetes.md), then run \`pulumi up\` again" >&2
    wanted=
fi
for port in 3000 5050 8080; do
    unit=health-predict-port@$port.socket
    if [[ $port == 3000 && " $wanted " == *" $port "* ]]; then
        systemctl enable --now --quiet "$unit"
    else
        systemctl disable --now --quiet "$unit"
    fi
done
