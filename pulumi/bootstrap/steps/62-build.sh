#!/bin/bash
# Build the images that ECR lacks. With this host's Docker, from the bundle, which is all that they are made of.
set -euo pipefail
[[ $HP_IMAGES == build ]] || exit 0
export PYTHON_IMAGE=$HP_PYTHON_IMAGE
# Where an older tag was asked for, there is nothing to build it from.
[[ $("$HP_ROOT/k8s/image-source") == "$HP_IMAGE_TAG" ]] || exit 0

lacking=()
for url in "$HP_IMAGE_MLFLOW" "$HP_IMAGE_PIPELINE"; do
    if ! aws ecr describe-images --repository-name "${url#*/}" --image-ids "imageTag=$HP_IMAGE_TAG" \
        >/dev/null 2>"$HP_STATE/ecr"; then
        grep --quiet ImageNotFoundException "$HP_STATE/ecr" || { cat "$HP_STATE/ecr" >&2; exit 1; }
        lacking+=("${url##*/}")
    fi
done
((${#lacking[@]})) || exit 0

# The token lies in a folder that goes at the end.
DOCKER_CONFIG=$(mktemp -d)
export DOCKER_CONFIG
trap 'rm -rf "$DOCKER_CONFIG"' EXIT
aws ecr get-login-password | docker login --username AWS --password-stdin "${HP_IMAGE_PIPELINE%%/*}" >/dev/null
PUSH=${HP_IMAGE_PIPELINE%/*} REVISION=$HP_GIT_COMMIT TARGETS="${lacking[*]}" "$HP_ROOT/k8s/images" ||
    { echo "the images ${lacking[*]} could not be built -> correct what is said above and run \`pulumi up\` again;" \
        "behind a proxy: \`pulumi config set images push\`" >&2; exit 1; }
# What no container uses: Kind's node keeps its image, the layers of the build go.
docker image prune --all --force >/dev/null
