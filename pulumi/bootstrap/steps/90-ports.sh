#!/bin/bash
# Ports opened on request: Kind listens on loopback, a socket on the host's address hands through to it.
set -euo pipefail
for port in 3000 5050 8080; do
    unit=health-predict-port@$port.socket
    if [[ " ${HP_OPEN_PORTS:-} " == *" $port "* ]]; then
        systemctl enable --now --quiet "$unit"
    else
        systemctl disable --now --quiet "$unit"
    fi
done
