#!/usr/bin/env bash
# Fails, naming the places, where a source file is not as clang-format writes it.
#   tools/check-format.sh [--fix]
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -t files < <(find flatquant apps tests bench \( -name '*.cc' -o -name '*.h' -o -name '*.cu' \
  -o -name '*.cuh' \) 2>/dev/null | sort)
if [[ "${1:-}" == --fix ]]; then
  clang-format -i "${files[@]}"
else
  clang-format --dry-run -Werror "${files[@]}"
fi
