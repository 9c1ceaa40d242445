#!/usr/bin/env bash
# Installs what the project needs from Debian 12's own packages (ARCHITECTURE.md
# says what each is for). Packages that are there already are left alone, so a
# second run costs nothing.
#
#   tools/install-deps.sh          what building and running needs
#   tools/install-deps.sh --test   and what the tests and checks need
set -euo pipefail

packages=(
  build-essential cmake ninja-build pkg-config jq gnuplot-nox
  libtorch-dev libdnnl-dev libopenmpi-dev openmpi-bin
  nlohmann-json3-dev libcli11-dev libfmt-dev
  libpcre2-dev libutf8proc-dev libsentencepiece-dev
  zlib1g-dev libzstd-dev
)
if [[ "${1:-}" == --test ]]; then
  packages+=(git libgtest-dev libgmock-dev libbenchmark-dev clang-format clang-tidy chromium)
elif [[ $# -gt 0 ]]; then
  echo "usage: tools/install-deps.sh [--test]" >&2
  exit 2
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query --show --showformat='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
  [[ $status == ii* ]] || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

as_root=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || {
    echo "install-deps: not root and no sudo; as root run: apt-get install ${missing[*]}" >&2
    exit 1
  }
  as_root=(sudo)
fi
echo "Installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get -qq update
"${as_root[@]}" apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null
