package server

import (
	"errors"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"

	"phoenix.internal/agent/driver"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
)

// driverReason is the part of statusOf that the errors of agent/driver have; without metadata it is none of them.
func driverReason(err error, ctid int32) (errorv1.Reason, codes.Code, map[string]string) {
	const code = codes.FailedPrecondition
	of := strconv.Itoa(int(ctid))
	decimal := func(n int64) string { return strconv.FormatInt(n, 10) }
	if e, ok := errors.AsType[*driver.SourceError](err); ok { // before FetchError: a redirection may lead there
		return errorv1.Reason_REASON_INSTALLER_SOURCE_NOT_ALLOWED, code, map[string]string{"url": e.URL}
	}
	if e, ok := errors.AsType[*driver.FetchError](err); ok {
		return errorv1.Reason_REASON_INSTALLER_UNAVAILABLE, codes.Unavailable, map[string]string{"url": e.URL}
	}
	if e, ok := errors.AsType[*driver.ChecksumError](err); ok {
		return errorv1.Reason_REASON_INSTALLER_CHECKSUM_MISMATCH, code, map[string]string{"version": e.Version, "want": e.Want, "got": e.Got}
	}
	if e, ok := errors.AsType[*driver.InvalidError](err); ok {
		return errorv1.Reason_REASON_INSTALLER_INVALID, code, map[string]string{"version": e.Version}
	}
	if e, ok := errors.AsType[*driver.NotCachedError](err); ok {
		return errorv1.Reason_REASON_INSTALLER_NOT_CACHED, code, map[string]string{"version": e.Version}
	}
	if e, ok := errors.AsType[*driver.SpaceError](err); ok {
		return errorv1.Reason_REASON_NODE_NO_SPACE, code,
			map[string]string{"path": e.Path, "needed_bytes": decimal(e.Needed), "free_bytes": decimal(e.Free)}
	}
	if e, ok := errors.AsType[*driver.LibcError](err); ok {
		return errorv1.Reason_REASON_LIBC_NOT_SUPPORTED, code, map[string]string{"ctid": of, "libc": string(e.Libc)}
	}
	if e, ok := errors.AsType[*driver.PackagedError](err); ok {
		return errorv1.Reason_REASON_DRIVER_PACKAGED, code, map[string]string{"ctid": of, "packages": strings.Join(e.Packages, ",")}
	}
	if e, ok := errors.AsType[*driver.SmallError](err); ok {
		return errorv1.Reason_REASON_CONTAINER_TOO_SMALL, code, map[string]string{
			"ctid": of, "resource": e.Resource, "needed_mib": decimal(e.NeededMiB), "free_mib": decimal(e.FreeMiB)}
	}
	if _, ok := errors.AsType[*driver.InstallError](err); ok {
		return errorv1.Reason_REASON_DRIVER_INSTALL_FAILED, code, map[string]string{"ctid": of}
	}
	if errors.Is(err, driver.ErrNotRemovable) {
		return errorv1.Reason_REASON_DRIVER_NOT_REMOVABLE, code, map[string]string{"ctid": of}
	}
	return 0, 0, nil
}
