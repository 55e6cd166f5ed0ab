#!/bin/sh
# The sandbox's stand-in for nvidia-smi of @VERSION@: -L and --query-gpu=driver_version,uuid --format=csv,noheader. It lists the GPUs
# whose device nodes are there.
loaded=@LOADED@
library=
for d in /usr/lib/x86_64-linux-gnu /usr/lib64 /usr/lib; do
	[ -n "$library" ] || library=$(readlink "$d/libnvidia-ml.so.1")
done
if [ -z "$library" ]; then
	echo "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that the NVIDIA Display Driver is properly installed and present in your system." >&2
	exit 12
fi
if [ "${library#libnvidia-ml.so.}" != "$loaded" ]; then
	echo "Failed to initialize NVML: Driver/library version mismatch"
	exit 18
fi
fields=
for a; do
	case $a in
	-L) ;;
	--query-gpu=*) fields=${a#*=} ;;
	--format=csv,noheader) ;;
	*) echo "Invalid combination of input arguments. $a" >&2; exit 2 ;;
	esac
done
n=0
gpu() { # minor model uuid [minor:profile:uuid of a MIG device...]
	[ -c "/dev/nvidia$1" ] || return 0
	model=$2 uuid=$3
	shift 3
	if [ -z "$fields" ]; then
		echo "GPU $n: $model (UUID: $uuid)"
		m=0
		for mig; do
			[ -c "/dev/nvidia-caps/nvidia-cap${mig%%:*}" ] || continue
			mig=${mig#*:}
			printf '  MIG %-15s Device %2d: (UUID: %s)\n' "${mig%%:*}" $m "${mig#*:}"
			m=$((m + 1))
		done
	else
		line=
		for f in $(echo $fields | tr , ' '); do
			case $f in
			driver_version) v=$loaded ;;
			uuid) v=$uuid ;;
			*) v='[N/A]' ;;
			esac
			line="$line${line:+, }$v"
		done
		echo "$line"
	fi
	n=$((n + 1))
}
@GPUS@
if [ $n = 0 ]; then
	echo "No devices were found"
	exit 6
fi
