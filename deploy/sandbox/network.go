package sandbox

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/bits"
	"net"
	"net/netip"
)

// Each node has a /30 in 10.177.0.0/16: this machine's end and the node's. The demo has 10.177.1.0/30,
// 10.177.2.0/30 and so on, so that a person can remember them; other sandboxes share what is above.
var (
	firstDemo  = netip.AddrFrom4([4]byte{10, 177, 1, 0})
	firstOther = netip.AddrFrom4([4]byte{10, 177, 64, 0})
)

const (
	perNode  = 4 // addresses
	allOther = 192 * 256
)

// addresses returns a function from the number of a node, from 1, to this machine's address and the
// node's. They are free at the moment.
func addresses(dir, name string, nodes int) (func(n int) (gateway, address netip.Addr), error) {
	if dir == DefaultDir {
		return func(n int) (gateway, address netip.Addr) { return pair(firstDemo, 256*(n-1)) }, nil
	}
	taken, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	size := perNode << bits.Len(uint(nodes-1))
	slots := allOther / size
	sum := sha256.Sum256([]byte(name))
	first := int(binary.BigEndian.Uint32(sum[:4])) % slots
	for i := range slots {
		offset := (first + i) % slots * size
		if !overlaps(taken, plus(firstOther, offset), plus(firstOther, offset+size)) {
			return func(n int) (gateway, address netip.Addr) { return pair(firstOther, offset+perNode*(n-1)) }, nil
		}
	}
	return nil, errors.New("no free addresses in 10.177.64.0 to 10.177.255.255")
}

func pair(base netip.Addr, offset int) (gateway, address netip.Addr) {
	return plus(base, offset+1), plus(base, offset+2)
}

func plus(a netip.Addr, offset int) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(offset))
	return netip.AddrFrom4(b)
}

func overlaps(taken []net.Addr, from, to netip.Addr) bool {
	for _, t := range taken {
		if prefix, err := netip.ParsePrefix(t.String()); err == nil {
			if a := prefix.Addr(); a.Compare(from) >= 0 && a.Less(to) {
				return true
			}
		}
	}
	return false
}
