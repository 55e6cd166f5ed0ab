#!/bin/bash
# Installs the Debian packages that `make test` and `make demo` need: LXC, a static busybox for the root file systems of
# test containers, gcc for the race detector, iproute2 for network namespaces. Does nothing if they are there.
set -euo pipefail

missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need lxc-start lxc
need gcc gcc
need ip iproute2
need nsenter util-linux
need systemd-analyze systemd
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
dpkg-query -W -f '${Status}' busybox-static 2>/dev/null | grep -q 'ok installed' || missing+=(busybox-static)

if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "not installed: ${missing[*]}; as root, run: apt-get install ${missing[*]}" >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
