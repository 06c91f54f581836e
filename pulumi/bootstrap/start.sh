#!/bin/bash
# Fetch the current bundle and run it. This is the user data of the first boot, and the same text comes through
# Systems Manager to upgrade a running host. Whatever it does may be done again.
set -euo pipefail
region=@REGION@
bucket=@BUCKET@
export AWS_DEFAULT_REGION=$region
home=/opt/health-predict

exec 8>/run/health-predict-start.lock
flock -w 7000 8 || { echo "another start has been running for two hours -> reboot the host" >&2; exit 75; }
mkdir -p /etc/health-predict "$home/releases"

# On the first boot the stack may still be uploading; the role may take a while to be known everywhere.
deadline=$((SECONDS + ${HP_FETCH_SECONDS:-600}))
until aws s3 cp --quiet "s3://$bucket/bundles/host.env" /etc/health-predict/host.env.new; do
    ((SECONDS < deadline)) || { echo "s3://$bucket/bundles/host.env cannot be read -> run \`pulumi up\` again" >&2; exit 69; }
    sleep 5
done
# shellcheck source=/dev/null
source /etc/health-predict/host.env.new

release=$home/releases/$HP_BUNDLE_SHA256
if [[ ! -d $release ]]; then
    unpacked=$(mktemp -d "$home/releases/.new.XXXXXX")
    trap 'rm -rf "$unpacked"' EXIT
    aws s3 cp --quiet "s3://$bucket/$HP_BUNDLE_KEY" "$unpacked/bundle.tar.gz"
    echo "$HP_BUNDLE_SHA256  $unpacked/bundle.tar.gz" | sha256sum --check --quiet ||
        { echo "s3://$bucket/$HP_BUNDLE_KEY is not the bundle it is named after -> run \`pulumi up\` again" >&2; exit 65; }
    tar -xzf "$unpacked/bundle.tar.gz" -C "$unpacked" --no-same-owner
    rm "$unpacked/bundle.tar.gz"
    chmod 755 "$unpacked"
    mv -T "$unpacked" "$release"
fi
mv /etc/health-predict/host.env.new /etc/health-predict/host.env
ln -sfnT "$release" "$home/current.new"
mv -T "$home/current.new" "$home/current"
exec "$home/current/pulumi/bootstrap/install.sh"
