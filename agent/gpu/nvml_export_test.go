package gpu

// Merge adds an answer of NVML to an inventory.
var Merge = merge
