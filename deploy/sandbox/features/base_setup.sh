#!/bin/sh
# Sample of a feature's script: it runs in the container as root, from its standard input, and may be
# repeated at any time.
set -eu
mkdir -p /etc/phoenix
echo "base setup of $(hostname)" >/etc/phoenix/base_setup
echo "base setup done"
