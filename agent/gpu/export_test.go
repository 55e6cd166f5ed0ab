package gpu

// The parsers, for fuzzing.
var (
	ParseAddress = parseAddress
	ParseDevices = parseDevices
	ParseMemory  = parseMemory
	ParseVersion = parseVersion
)

// ParseInformation is parseInformation with its result taken apart.
func ParseInformation(b []byte) (model, uuid string, minor int, excluded bool) {
	info := parseInformation(b)
	return info.model, info.uuid, info.minor, info.excluded
}

// ParseParams is parseParams with its result taken apart.
func ParseParams(b []byte) (mode uint32, uid, gid int) {
	p := parseParams(b)
	return p.mode, p.uid, p.gid
}
