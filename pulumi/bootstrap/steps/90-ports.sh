#!/bin/bash
# The endpoint's port, opened on request: Kind listens on loopback, a socket on the host's address hands through to it.
# The others were to be opened once, and are closed where they still are.
set -euo pipefail
for port in 3000 5050 8080; do
    unit=health-predict-port@$port.socket
    if [[ " ${HP_OPEN_PORTS:-} " == *" $port "* ]]; then
        systemctl enable --now --quiet "$unit"
    else
        systemctl disable --now --quiet "$unit"
    fi
done
