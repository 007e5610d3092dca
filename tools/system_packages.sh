#!/bin/sh
# Installs what `make setup` needs from Debian, and only what is missing. Without root it prints the line to run and fails.
#   tools/system_packages.sh [PYTHON]      PYTHON is the interpreter that makes the virtual environment
set -eu
python=${1:-python3}

packages="
  gcc libc6-dev cmake clang-format
  qemu-system-arm gcc-arm-none-eabi libnewlib-arm-none-eabi
  qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-arm-linux-gnueabihf libc6-dev-armhf-cross
  dataset-fashion-mnist chromium fonts-dejavu-core
"
tools="cc cmake clang-format qemu-system-arm arm-none-eabi-gcc qemu-aarch64 aarch64-linux-gnu-gcc arm-linux-gnueabihf-gcc chromium"

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  if [ "$python" != python3 ] || command -v python3 >/dev/null 2>&1; then
    found=$("$python" --version 2>/dev/null) || found="no working interpreter"
    echo "setup: $python: found $found; allowed Python 3.11 or newer; run make PYTHON=/path/to/python3.11" >&2
    exit 1
  fi
  packages="$packages python3"
fi
# Debian's own Python comes without ensurepip, others bring it.
"$python" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3-venv"

if ! command -v dpkg-query >/dev/null 2>&1; then
  missing=
  for tool in $tools; do
    command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
  done
  [ -z "$missing" ] && exit 0
  echo "setup: system tools: not found:$missing; this is no Debian, install them with your package manager, then run make again" >&2
  exit 1
fi

missing=
for package in $packages; do
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "setup: Debian packages: missing$missing; installing them needs root; run this line, then make again:" >&2
  echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends$missing" >&2
  exit 1
fi
echo "setup: installing Debian packages:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086 # a list of words
apt-get install -q -y --no-install-recommends $missing
