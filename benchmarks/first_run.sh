#!/bin/bash
# How long the first `make demo` takes: of a fresh clone in a temporary folder, with nothing built. What is committed is
# measured. The download of torch is told apart: it depends on the network, and pip keeps it for the next time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git clone --quiet . "$folder/flowfuse"
cd "$folder/flowfuse"
start=$SECONDS
make --silent .venv/.torch >"$folder/log" 2>&1 || { tail -n 20 "$folder/log" >&2; exit 1; }
installed=$SECONDS
make --silent demo >>"$folder/log" 2>&1 || { tail -n 20 "$folder/log" >&2; exit 1; }
finished=$SECONDS
test -s demo_out/index.html
grep -E "^EPE:" "$folder/log"
echo "environment and torch: $((installed - start)) s"
echo "compile, install, estimate, draw: $((finished - installed)) s, on $(nproc) cores"
