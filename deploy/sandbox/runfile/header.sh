#!/bin/sh
# The sandbox's stand-in for NVIDIA-Linux-x86_64-@VERSION@.run. What follows the last line is a tar archive.
target= only=
while [ $# -gt 0 ]; do
	case $1 in
	-x|--extract-only) only=1 ;;
	--target) target=$2; shift ;;
	*) echo "the stand-in does not know $1" >&2; exit 1 ;;
	esac
	shift
done
if [ -z "$only" ] || [ -z "$target" ]; then echo "the stand-in only extracts: --extract-only --target DIR" >&2; exit 1; fi
if [ -e "$target" ]; then echo "The directory $target already exists." >&2; exit 1; fi
mkdir -p "$target" || exit 1
echo "Uncompressing NVIDIA Accelerated Graphics Driver for Linux-x86_64 @VERSION@"
sleep @EXTRACT@
tail -n +@LINES@ "$0" | gzip -dc | tar -x -f - -C "$target"
exit
