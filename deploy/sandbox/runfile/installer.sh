#!/bin/sh
# The sandbox's stand-in for nvidia-installer of @VERSION@. A file /etc/stand-in-installer makes it go wrong, once: "fail" at once,
# "half" after half of the files, with "hang" it stops there until it is ended.
options='@OPTIONS@'
record=/var/lib/nvidia/log
log=/var/log/nvidia-installer.log
silent= nokernel= uninstall= nographics=
for a; do
	case $a in
	--tmpdir=*|--log-file-name=*) [ "${a%%=*}" = --tmpdir ] || log=${a#*=}; continue ;;
	esac
	known=
	for o in $options; do [ "$o" != "$a" ] || known=1; done
	if [ -z "$known" ]; then echo "nvidia-installer: unrecognized option: \"$a\"" >&2; exit 1; fi
	case $a in
	--advanced-options) for o in $options; do echo "  $o"; echo "      What it does."; done; exit 0 ;;
	--silent) silent=1 ;;
	--no-kernel-module|--no-kernel-modules) nokernel=1 ;;
	--uninstall) uninstall=1 ;;
	--no-opengl-files) nographics=1 ;;
	esac
done
if [ -z "$silent" ]; then echo "ERROR: there is nobody to answer questions" >&2; exit 1; fi
remove() {
	[ -e $record ] || return 0
	while read -r f; do rm -f "$f"; done <$record
	rm -rf /var/lib/nvidia
}
if [ -n "$uninstall" ]; then
	[ -e $record ] || { echo "ERROR: There is no NVIDIA driver installed." >&2; exit 1; }
	remove
	exit 0
fi
if [ -z "$nokernel" ]; then echo "ERROR: Unable to find the kernel source tree for the currently running kernel." >&2; exit 1; fi
echo "nvidia-installer log file '$log' of version @VERSION@: $*" >"$log"
wrong=$(cat /etc/stand-in-installer 2>/dev/null)
rm -f /etc/stand-in-installer
if [ "$wrong" = fail ]; then
	echo "ERROR: as /etc/stand-in-installer says" >>"$log"
	exit 1
fi
remove
lib=/usr/lib
[ ! -d /usr/lib64 ] || [ -L /usr/lib64 ] || lib=/usr/lib64
[ ! -d /usr/lib/x86_64-linux-gnu ] || lib=/usr/lib/x86_64-linux-gnu
mkdir -p /var/lib/nvidia
put() { # from to
	echo "$2" >>$record && rm -f "$2" && cp "$1" "$2" && chmod 755 "$2" || exit 1
}
link() { # target name
	echo "$2" >>$record && ln -sf "$1" "$2" || exit 1
}
put nvidia-installer /usr/bin/nvidia-installer
n=0
for f in *.so.@VERSION@; do
	case $f in libEGL_*) [ -z "$nographics" ] || continue ;; esac
	put "$f" "$lib/$f"
	n=$((n + 1))
	if [ $n = 3 ] && [ -n "$wrong" ]; then
		[ "$wrong" != hang ] || sleep 86400
		echo "ERROR: half of it is there" >&2
		exit 1
	fi
	case $f in
	libEGL_*) link "$f" "$lib/${f%%.so.*}.so.0" ;;
	libnvidia-nvvm.*) link "$f" "$lib/${f%%.so.*}.so.4" ;;
	*) link "$f" "$lib/${f%%.so.*}.so.1" ;;
	esac
done
put nvidia-smi /usr/bin/nvidia-smi
exit 0
