package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// The names are those of the proto files, and fields that are zero are there too, so that a program can rely on them;
// only what is absent (messages, optional fields) is left out.
var marshal = protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}

// WriteJSON writes an API message as indented JSON. Bytes are base64, 64-bit numbers are strings, as protojson has it.
func WriteJSON(w io.Writer, m proto.Message) error {
	raw, err := RawJSON(m)
	if err != nil {
		return err
	}
	return WriteValue(w, raw)
}

// WriteJSONLine writes an API message as one line of JSON, for streams.
func WriteJSONLine(w io.Writer, m proto.Message) error {
	raw, err := RawJSON(m)
	if err != nil {
		return err
	}
	_, err = w.Write(append(raw, '\n'))
	return err
}

// WriteValue writes any value as indented JSON: for the few answers that are no single API message.
func WriteValue(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// RawJSON returns an API message as JSON without spaces.
func RawJSON(m proto.Message) (json.RawMessage, error) {
	b, err := marshal.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write %s as JSON: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	// protojson puts spaces at random places, so that nobody depends on them.
	var compact bytes.Buffer
	if err := json.Compact(&compact, b); err != nil {
		return nil, err
	}
	return compact.Bytes(), nil
}
