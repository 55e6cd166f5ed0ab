package lxcmon

// InPayload is the reader of /proc/PID/cgroup, for paths that only other hosts have.
var InPayload = inPayload
