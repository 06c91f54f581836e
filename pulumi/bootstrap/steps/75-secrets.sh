#!/bin/bash
# Keep the database's password beside its data, for the day the cluster is made anew. A timer repeats it, since the
# password rotates.
set -euo pipefail
umask 077
kubectl -n health-predict get secret postgres --output json |
    python3 -c '
import json, sys
secret = json.load(sys.stdin)
kept = {name: secret["metadata"][name] for name in ("name", "namespace")}
print(json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": kept, "data": secret["data"]}))
' >/data/secrets/postgres.json.new
sync /data/secrets/postgres.json.new
mv /data/secrets/postgres.json.new /data/secrets/postgres.json
