#!/bin/bash
# The Kind cluster. A changed configuration never replaces a running cluster by itself.
set -euo pipefail
export DATA=/data CERTS=/etc/health-predict/certs.d STATE=$HP_STATE REPLACE=${HP_RECREATE_CLUSTER:-}
# The API server's port is fixed, so that it can be forwarded.
export API_PORT=6443 REMEDY='pulumi config set recreate_cluster CONFIGURATION && pulumi up'
mkdir -p "$CERTS"
exec "$HP_ROOT/k8s/kind-cluster"
