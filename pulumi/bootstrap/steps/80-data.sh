#!/bin/bash
# The raw data in the bucket, fetched once from the publisher.
set -euo pipefail
target=s3://$HP_BUCKET/raw/diabetic_data.csv
if aws s3api head-object --bucket "$HP_BUCKET" --key raw/diabetic_data.csv >/dev/null 2>&1; then
    exit
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
curl --fail --silent --show-error --location --proto '=https,file' --retry 5 --retry-all-errors --connect-timeout 20 \
    --max-time 900 --output "$folder/data.zip" "$HP_DATA_URL" ||
    { echo "$HP_DATA_URL cannot be fetched -> \`aws s3 cp diabetic_data.csv $target\`, then \`pulumi up\`" >&2; exit 1; }
# The archive may hold folders and other files.
name=$(unzip -Z1 "$folder/data.zip" | grep --max-count=1 'diabetic_data\.csv$')
unzip -p "$folder/data.zip" "$name" >"$folder/diabetic_data.csv"
echo "$HP_DATA_SHA256  $folder/diabetic_data.csv" | sha256sum --check --quiet ||
    { echo "$HP_DATA_URL holds other data than expected -> compare, then \`aws s3 cp diabetic_data.csv $target\`" >&2; exit 1; }
aws s3 cp --quiet "$folder/diabetic_data.csv" "$target"
