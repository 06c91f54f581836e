#!/bin/bash
# download.sh URL SHA256: print the path of the file, which has that checksum. What is there already is not fetched again.
set -euo pipefail
url=$1 sha256=$2
file=/var/cache/health-predict/$sha256
mkdir -p "$(dirname "$file")"
rm -f "$file".part.*
if ! echo "$sha256  $file" | sha256sum --check --status 2>/dev/null; then
    part=$(mktemp "$file.part.XXXXXX")
    trap 'rm -f "$part"' EXIT
    curl --fail --silent --show-error --location --proto '=https,file' --retry 5 --retry-all-errors \
        --connect-timeout 20 --max-time 600 --output "$part" "$url"
    found=$(sha256sum "$part" | cut -d' ' -f1)
    if [[ $found != "$sha256" ]]; then
        echo "$url has SHA-256 $found, not $sha256 as in versions.env; nothing of it was used" \
            "-> compare with the publisher's checksum, correct versions.env, run \`pulumi up\`" >&2
        exit 65
    fi
    chmod 644 "$part"
    sync "$part"
    mv "$part" "$file"
fi
echo "$file"
