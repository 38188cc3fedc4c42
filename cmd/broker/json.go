package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Each --json flag prints one object per line, with the API's field names in snake_case. A
// list without items is [], a time that is not set is left out.

// jsonFlag adds the flag --json.
func jsonFlag(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "print JSON, an object in each line")
}

// printJSON prints a value as one line. It escapes nothing for HTML, as printMessage.
func printJSON(out io.Writer, value any) error {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// notNil returns a list that is encoded as [] if it has no items.
func notNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
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
