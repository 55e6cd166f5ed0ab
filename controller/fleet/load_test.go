package fleet_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"phoenix.internal/controller/fleet"
)

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	sparse := write("sparse.json", "", 0o600)
	if err := os.Truncate(sparse, 100<<20); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo.json")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, path, want string
	}{
		{"none", filepath.Join(dir, "none.json"), "read fleet file: open DIR/none.json: no such file or directory"},
		{"directory", dir, "read fleet file DIR: it is a directory; name the file in it, usually phoenix_lxc_configs.json"},
		{"fifo", fifo, "read fleet file DIR/fifo.json: it is not a regular file"},
		{"writable by everybody", write("open.json", `{"lxc_configs": {}}`, 0o666), "read fleet file DIR/open.json: everybody may write it (mode 0666); run chmod o-w DIR/open.json"},
		{"too large", sparse, "read fleet file DIR/sparse.json: 104857600 bytes are too many; a fleet file has at most 8388608 (8 MiB)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, findings, err := fleet.Load(tt.path)
			want := strings.ReplaceAll(tt.want, "DIR", dir)
			if err == nil || err.Error() != want {
				t.Errorf("Load(%s) = %v, %v, %v; want %s", tt.path, f, findings, err, want)
			}
		})
	}
	if _, _, err := fleet.Load(filepath.Join(dir, "none.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of no file: %v is not fs.ErrNotExist", err)
	}
	f, findings, err := fleet.Load(write("good.json", in901(`"gpu_assignment": "1"`), 0o640))
	if err != nil || len(findings) > 0 || len(f.Containers) != 1 {
		t.Errorf("Load of a good file = %+v, %v, %v", f, findings, err)
	}
}
