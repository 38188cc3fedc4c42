package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Each --json flag prints one object per line, with the API's field names in snake_case.

// printJSON prints a value as one line.
func printJSON(out io.Writer, value any) error {
	return json.NewEncoder(out).Encode(value)
}

// printMessage prints a message of the API as one line.
func printMessage(out io.Writer, m proto.Message) error {
	line, err := messageJSON(m)
	if err == nil {
		_, err = fmt.Fprintf(out, "%s\n", line)
	}
	return err
}

// messageJSON encodes a message of the API. protojson varies the white space on purpose,
// so that programs do not rely on it; scripts do, so it is removed.
func messageJSON(m proto.Message) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var line bytes.Buffer
	err = json.Compact(&line, text)
	return line.Bytes(), err
}
