package driver

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cuda is what came of calling cuInit.
type cuda struct {
	Result int32  `json:"result"` // a CUresult
	Failed string `json:"failed"` // why there is none; empty: there is one
	Cannot bool   `json:"cannot"` // this machine has no way to call it
}

// cudaTimeout bounds cuInit, which takes seconds on a machine with many GPUs and no persistence daemon.
const cudaTimeout = 60 * time.Second

// verifyCUDA has the container's libcuda.so.1 initialise itself.
func (i *Installer) verifyCUDA(ctx context.Context, ctid int32, v *Verdict) error {
	m, err := i.call(ctx, ctid, cudaTimeout+10*time.Second, request{Do: doCUDA}, nil, nil)
	if err != nil {
		return err
	}
	switch c := m.CUDA; {
	case c == nil:
		return fmt.Errorf("%w: nothing about CUDA", ErrHelper)
	case c.Cannot:
	case c.Failed != "":
		v.Problems = append(v.Problems, "cuInit of libcuda.so.1 cannot be called: "+printable(c.Failed[:min(len(c.Failed), 300)]))
	default:
		v.CUDA, v.CUDAResult = CUDARan, c.Result
		if c.Result != 0 {
			v.Problems = append(v.Problems, fmt.Sprintf("cuInit returned %d%s", c.Result, cudaNames[c.Result]))
		}
	}
	return nil
}

// cudaNames are the results that say something about the machine (CUresult in cuda.h).
var cudaNames = map[int32]string{
	3: " (not initialized)", 100: " (no device)", 101: " (invalid device)", 802: " (system not ready: is Fabric Manager running on the node?)",
	803: " (system driver mismatch)", 804: " (compatibility not supported on this device)", 999: " (unknown error: is /dev/nvidia-uvm there?)",
}

// initCUDA calls cuInit(0) in this root file system. A static program cannot load a library that needs glibc. So it makes
// a program that asks the container's own loader for libcuda.so.1, as any CUDA program does.
func initCUDA() *cuda {
	if runtime.GOARCH != "amd64" {
		return &cuda{Cannot: true}
	}
	fd, err := unix.MemfdCreate("phoenix-cuinit", unix.MFD_CLOEXEC)
	if err != nil {
		return &cuda{Failed: err.Error()}
	}
	program := os.NewFile(uintptr(fd), "phoenix-cuinit")
	defer program.Close()
	if _, err := program.Write(cuInitProgram()); err != nil {
		return &cuda{Failed: err.Error()}
	}
	// A file that is open for writing is not executed.
	readOnly, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return &cuda{Failed: err.Error()}
	}
	defer readOnly.Close()
	program.Close()
	ctx, cancel := context.WithTimeout(context.Background(), cudaTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, fmt.Sprintf("/proc/self/fd/%d", readOnly.Fd()))
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.WaitDelay = time.Second
	stdout, stderr := &tail{max: 4}, &tail{max: 300}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err = cmd.Run()
	if err != nil || len(stdout.b) != 4 {
		return &cuda{Failed: strings.TrimSpace(fmt.Sprintf("%v: %s", err, stderr))}
	}
	return &cuda{Result: int32(binary.LittleEndian.Uint32(stdout.b))}
}

// cuInitProgram is a dynamically linked program for x86-64 that writes the 4 bytes of cuInit(0)'s result to its stdout.
func cuInitProgram() []byte {
	const (
		base      = 0x400000
		page      = 0x1000
		dataAt    = base + page
		interp    = "/lib64/ld-linux-x86-64.so.2\x00"
		names     = "\x00libcuda.so.1\x00cuInit\x00"
		library   = 1
		function  = 14
		glob      = uint64(elf.R_X86_64_GLOB_DAT)
		slotBytes = 8
	)
	var text, data bytes.Buffer
	at := func(b *bytes.Buffer, v any) (offset uint64) {
		b.Write(make([]byte, -b.Len()&7))
		offset = uint64(b.Len())
		_ = binary.Write(b, binary.LittleEndian, v) // memory takes it
		return offset
	}
	const segments = 5
	text.Write(make([]byte, 64+segments*56)) // the headers, filled in below
	interpAt := at(&text, []byte(interp))
	namesAt := at(&text, []byte(names))
	symbolsAt := at(&text, []elf.Sym64{{}, {Name: function, Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_FUNC)}})
	hashAt := at(&text, []uint32{1, 2, 1, 0, 0}) // one bucket, two symbols
	relaAt := at(&text, elf.Rela64{Off: dataAt, Info: 1<<32 | glob})
	codeAt := at(&text, []byte{
		0x31, 0xff, // xor edi, edi
		0xff, 0x15, 0, 0, 0, 0, // call [rip+slot]
		0x50,             // push rax
		0x6a, 0x01, 0x5f, // rdi = 1
		0x48, 0x89, 0xe6, // mov rsi, rsp
		0x6a, 0x04, 0x5a, // rdx = 4
		0x6a, 0x01, 0x58, // rax = 1, write
		0x0f, 0x05, // syscall
		0x31, 0xff, // xor edi, edi
		0xb8, 0xe7, 0, 0, 0, // mov eax, 231, exit_group
		0x0f, 0x05, // syscall
	})
	binary.LittleEndian.PutUint32(text.Bytes()[codeAt+4:], uint32(dataAt-(base+codeAt+8)))

	at(&data, make([]byte, slotBytes))
	dynamic := []elf.Dyn64{
		{Tag: int64(elf.DT_NEEDED), Val: library},
		{Tag: int64(elf.DT_HASH), Val: base + hashAt},
		{Tag: int64(elf.DT_STRTAB), Val: base + namesAt},
		{Tag: int64(elf.DT_SYMTAB), Val: base + symbolsAt},
		{Tag: int64(elf.DT_STRSZ), Val: uint64(len(names))},
		{Tag: int64(elf.DT_SYMENT), Val: elf.Sym64Size},
		{Tag: int64(elf.DT_RELA), Val: base + relaAt},
		{Tag: int64(elf.DT_RELASZ), Val: 24},
		{Tag: int64(elf.DT_RELAENT), Val: 24},
		{Tag: int64(elf.DT_FLAGS), Val: uint64(elf.DF_BIND_NOW)},
		{},
	}
	dynamicAt := at(&data, dynamic)
	dynamicBytes := uint64(len(dynamic)) * 16

	var head bytes.Buffer
	at(&head, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: base + codeAt, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: segments,
	})
	segment := func(kind elf.ProgType, flags elf.ProgFlag, offset, address, size, align uint64) elf.Prog64 {
		return elf.Prog64{Type: uint32(kind), Flags: uint32(flags), Off: offset, Vaddr: address, Paddr: address, Filesz: size, Memsz: size, Align: align}
	}
	at(&head, []elf.Prog64{
		segment(elf.PT_INTERP, elf.PF_R, interpAt, base+interpAt, uint64(len(interp)), 1),
		segment(elf.PT_LOAD, elf.PF_R|elf.PF_X, 0, base, uint64(text.Len()), page),
		segment(elf.PT_LOAD, elf.PF_R|elf.PF_W, page, dataAt, uint64(data.Len()), page),
		segment(elf.PT_DYNAMIC, elf.PF_R|elf.PF_W, page+dynamicAt, dataAt+dynamicAt, dynamicBytes, 8),
		segment(elf.PT_GNU_STACK, elf.PF_R|elf.PF_W, 0, 0, 0, 16),
	})
	copy(text.Bytes(), head.Bytes())
	text.Write(make([]byte, page-text.Len()))
	return append(text.Bytes(), data.Bytes()...)
}
