package runfile

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"runtime"
)

// sharedObject makes a shared library that programs can load, with a function that takes anything and returns 0.
func sharedObject(soname, function string) []byte {
	machine, code := elf.EM_X86_64, []byte{0x31, 0xc0, 0xc3} // xor eax, eax; ret
	if runtime.GOARCH == "arm64" {
		machine, code = elf.EM_AARCH64, []byte{0x00, 0x00, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6} // mov w0, 0; ret
	}
	const headers, segmentBytes, sectionBytes, dynamicBytes = 64 + 3*56, 56, 64, 16
	names := "\x00" + soname + "\x00" + function + "\x00"
	sections := "\x00.dynstr\x00.dynamic\x00.shstrtab\x00"

	var b bytes.Buffer
	b.Write(make([]byte, headers))
	put := func(v any) (at uint64) {
		b.Write(make([]byte, -b.Len()&7))
		at = uint64(b.Len())
		_ = binary.Write(&b, binary.LittleEndian, v) // memory takes it
		return at
	}
	namesAt := put([]byte(names))
	codeAt := put(code)
	symbolsAt := put([]elf.Sym64{{}, {
		Name: uint32(len(soname) + 2), Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_FUNC), Shndx: 1, Value: codeAt, Size: uint64(len(code)),
	}})
	hashAt := put([]uint32{1, 2, 1, 0, 0}) // one bucket, two symbols
	dynamic := []elf.Dyn64{
		{Tag: int64(elf.DT_SONAME), Val: 1},
		{Tag: int64(elf.DT_HASH), Val: hashAt},
		{Tag: int64(elf.DT_STRTAB), Val: namesAt},
		{Tag: int64(elf.DT_SYMTAB), Val: symbolsAt},
		{Tag: int64(elf.DT_STRSZ), Val: uint64(len(names))},
		{Tag: int64(elf.DT_SYMENT), Val: elf.Sym64Size},
		{},
	}
	size := uint64(len(dynamic)) * dynamicBytes
	dynamicAt := put(dynamic)
	sectionNamesAt := put([]byte(sections))
	sectionsAt := put([]elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_STRTAB), Off: namesAt, Size: uint64(len(names))},
		{Name: 9, Type: uint32(elf.SHT_DYNAMIC), Off: dynamicAt, Size: size, Link: 1, Entsize: dynamicBytes},
		{Name: 18, Type: uint32(elf.SHT_STRTAB), Off: sectionNamesAt, Size: uint64(len(sections))},
	})
	all := uint64(b.Len())

	var head bytes.Buffer
	_ = binary.Write(&head, binary.LittleEndian, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_DYN), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Phoff: 64, Shoff: sectionsAt,
		Ehsize: 64, Phentsize: segmentBytes, Phnum: 3, Shentsize: sectionBytes, Shnum: 4, Shstrndx: 3,
	})
	// The loader writes addresses into the dynamic section.
	const page = 0x1000
	_ = binary.Write(&head, binary.LittleEndian, []elf.Prog64{
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W | elf.PF_X), Filesz: all, Memsz: all, Align: page},
		{Type: uint32(elf.PT_DYNAMIC), Flags: uint32(elf.PF_R | elf.PF_W), Off: dynamicAt, Vaddr: dynamicAt, Paddr: dynamicAt, Filesz: size, Memsz: size, Align: 8},
		{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W), Align: 16},
	})
	copy(b.Bytes(), head.Bytes())
	return b.Bytes()
}
