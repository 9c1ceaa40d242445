#!/usr/bin/env bash
# Runs the enforced clang-tidy checks (.clang-tidy) over the project's sources.
# Files that include LibTorch's headers are left out: clang-tidy 14 does not parse
# those of LibTorch 1.13 as C++20; so are CUDA sources, which belong to nvcc.
#   tools/check-tidy.sh BUILD_DIR [PATTERN]   PATTERN: a regular expression of paths
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1
pattern=${2:-.}
jq -r '.[].file' "$build/compile_commands.json" | sort -u | grep -vE '/flatquant/compress/|\.cu$' |
  grep -E "$pattern" |
  xargs -P "$(nproc)" -n 4 clang-tidy -p "$build" --quiet --extra-arg=-Wno-unknown-warning-option
