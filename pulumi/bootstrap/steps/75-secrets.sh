#!/bin/bash
# Keep the database's password beside its data. A timer repeats it, since the password rotates.
set -euo pipefail
exec "$HP_ROOT/k8s/keep-password" /data/secrets
