package runfile

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"runtime"
)

// sharedObject makes a shared library with nothing in it but its soname.
func sharedObject(soname string) []byte {
	machine := elf.EM_X86_64
	if runtime.GOARCH == "arm64" {
		machine = elf.EM_AARCH64
	}
	const headerBytes, sectionBytes, dynamicBytes = 64, 64, 16
	names := "\x00.dynstr\x00.dynamic\x00.shstrtab\x00"
	text := "\x00" + soname + "\x00"
	textAt := uint64(headerBytes)
	dynamicAt := (textAt + uint64(len(text)) + 7) &^ 7
	namesAt := dynamicAt + 2*dynamicBytes
	sectionsAt := (namesAt + uint64(len(names)) + 7) &^ 7

	var b bytes.Buffer
	put := func(at uint64, v any) {
		b.Write(make([]byte, at-uint64(b.Len())))
		_ = binary.Write(&b, binary.LittleEndian, v) // memory takes it
	}
	put(0, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_DYN), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Shoff: sectionsAt,
		Ehsize: headerBytes, Shentsize: sectionBytes, Shnum: 4, Shstrndx: 3,
	})
	put(textAt, []byte(text))
	put(dynamicAt, []elf.Dyn64{{Tag: int64(elf.DT_SONAME), Val: 1}, {Tag: int64(elf.DT_NULL)}})
	put(namesAt, []byte(names))
	put(sectionsAt, []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_STRTAB), Off: textAt, Size: uint64(len(text))},
		{Name: 9, Type: uint32(elf.SHT_DYNAMIC), Off: dynamicAt, Size: 2 * dynamicBytes, Link: 1, Entsize: dynamicBytes},
		{Name: 18, Type: uint32(elf.SHT_STRTAB), Off: namesAt, Size: uint64(len(names))},
	})
	return b.Bytes()
}
