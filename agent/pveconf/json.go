package pveconf

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// ConfigJSON returns the conf as Proxmox's parser holds it in memory, on one line with sorted keys: the properties
// by name, with numbers where Proxmox makes numbers of the text; "description", decoded; "lxc", the raw lines
// as [key, value] pairs; "env", the lxc.environment.runtime lines joined by NUL; "digest"; and with the same content
// "pending" and, by name, "snapshots". A string that is not UTF-8 is an object with its bytes in hex under
// "$bytes_hex". It returns a [*FatalError] where Proxmox's parser dies, but not where only its writer does.
func (f *File) ConfigJSON() ([]byte, error) {
	m, err := f.meaning()
	if err != nil {
		return nil, err
	}
	snapshots := map[string]any{}
	for name, b := range m.snapshots {
		snapshots[name] = b.config()
	}
	config := map[string]any{"digest": f.Digest(), "pending": map[string]any{}, "snapshots": snapshots}
	// A property of one of these names takes its place, but [pve:pending] comes after all properties.
	for key, value := range m.main.config() {
		config[key] = value
	}
	if m.pending != nil {
		config["pending"] = m.pending.config()
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(config); err != nil {
		return nil, fmt.Errorf("encode conf: %w", err)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

func (b *body) config() map[string]any {
	config := map[string]any{}
	if b.description != "" {
		config["description"] = jsonString(b.description)
	}
	for key, p := range b.properties {
		if p.number && json.Valid([]byte(p.text)) { // Perl's Inf is not
			config[key] = json.Number(p.text)
		} else {
			config[key] = jsonString(p.text)
		}
	}
	if b.raw != nil {
		raw := make([][2]any, len(b.raw))
		for i, e := range b.raw {
			raw[i] = [2]any{jsonString(e.Key), jsonString(e.Value)}
		}
		config["lxc"] = raw
	}
	return config
}

func jsonString(s string) any {
	if utf8.ValidString(s) {
		return s
	}
	return map[string]string{"$bytes_hex": hex.EncodeToString([]byte(s))}
}
