#!/usr/bin/env bash
# Writes FOLDER/operator.cdx.json and FOLDER/pipeline.cdx.json: CycloneDX, every Python package of the image with its hashes.
set -euo pipefail
folder=$(realpath -m "${1:?usage: images/sbom.sh FOLDER}")
cd "$(dirname "$0")/.."
mkdir -p "$folder"

bill() { # IMAGE LOCK
    cyclonedx-py requirements "requirements/$2.txt" --pyproject pyproject.toml --output-reproducible \
        -o "$folder/$1.cdx.json"
}

bill operator operator
bill pipeline gpu
