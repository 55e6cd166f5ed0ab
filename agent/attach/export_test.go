package attach

// ParseLog is the reader of lxc-attach's log, for tests that play a container that writes to it.
var ParseLog = parseLog
