#!/usr/bin/env bash
# Resolves the locks beside this file anew; what still fits stays. They hold versions and hashes, never an address.
set -euo pipefail
cd "$(dirname "$0")"

lock() { # NAME OPTION...
    uv pip compile -q "$1.in" "${@:2}" --generate-hashes -o "$1.txt"
}

lock operator --python-version 3.11
lock cpu --override overrides.txt --python-version 3.11
lock dev --override overrides.txt -c cpu.txt --python-version 3.11
lock gpu --override overrides.txt --python-version 3.12 --python-platform linux # what the pipeline image has
lock build -c dev.txt --python-version 3.11
