package probe

// ParseAnswer is the reader of what the container says, for tests that play a hostile one.
var ParseAnswer = parseAnswer
