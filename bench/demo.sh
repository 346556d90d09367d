#!/usr/bin/env bash
# The demo: real digits, a tiny model, a teacher on loopback, one manifest, one report, both engines compared.
# Usage: bench/demo.sh FOLDER PORT
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1 port=$2 egt=.venv/bin/egt
[ -e "$folder/data/truth.parquet" ] || $egt data digits "$folder/data"
[ -e "$folder/model/config.json" ] || $egt model tiny "$folder/model"
$egt data teacher --port "$port" >"$folder/teacher.log" 2>&1 &
teacher=$!
trap 'kill $teacher 2>/dev/null || true' EXIT
until grep -q "^http" "$folder/teacher.log"; do
    kill -0 $teacher 2>/dev/null || { cat "$folder/teacher.log" >&2; echo "the teacher did not start on port $port" >&2; exit 1; }
    sleep 0.2
done
$egt local run crds/examples/digits.yaml
$egt report crds/examples/digits.yaml --truth "$folder/data/truth.parquet" --out "$folder/report.html"
# The same samples once more by the other engine: what curation rests on depends on neither.
.venv/bin/python bench/engines.py crds/examples/digits.yaml --rows 200
