#!/usr/bin/env bash
# Runs the enforced clang-tidy checks (.clang-tidy) over the project's sources.
#   tools/check-tidy.sh BUILD_DIR [PATTERN]   PATTERN: a regular expression of paths
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1
pattern=${2:-.}
jq -r '.[].file' "$build/compile_commands.json" | sort -u | grep -E "$pattern" |
  xargs -P "$(nproc)" -n 4 clang-tidy -p "$build" --quiet --extra-arg=-Wno-unknown-warning-option
