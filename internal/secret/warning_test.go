package secret_test

import (
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
)

func TestWarning(t *testing.T) {
	for name, test := range map[string]struct{ value, want string }{
		"plain":              {"s3cr3t~with-_.punctuation+/=", ""},
		"inner space":        {"correct horse battery", ""},
		"umlaut":             {"größe", ""},
		"inner quote":        {`a"b'c`, ""},
		"byte order mark":    {"\ufeffs3cr3t", "begins with a byte order mark"},
		"UTF-16":             {"\xff\xfes\x003\x00", "begins with a byte order mark, contains a NUL byte"},
		"UTF-16, big-endian": {"\xfe\xff\x00s", "begins with a byte order mark, contains a NUL byte"},
		"trailing space":     {"s3cr3t ", "begins or ends with white space"},
		"leading space":      {" s3cr3t", "begins or ends with white space"},
		"leading tab":        {"\ts3cr3t", "begins or ends with white space"},
		"no-break space":     {"s3cr3t\u00a0", "begins or ends with white space"},
		"NUL":                {"s3c\x00r3t", "contains a NUL byte"},
		"second line end":    {"s3cr3t\n", "contains a line end, begins or ends with white space"},
		"carriage return":    {"s3cr3t\r", "contains a line end, begins or ends with white space"},
		"two lines":          {"one\ntwo", "contains a line end"},
		"escape":             {"s3cr3t\x1b[A", "contains a control or invisible character"},
		"zero width":         {"s3c\u200br3t", "contains a control or invisible character"},
		"right to left":      {"s3c\u202er3t", "contains a control or invisible character"},
		"inner mark":         {"s3c\ufeffr3t", "contains a control or invisible character"},
		"double quotes":      {`"s3cr3t"`, "is enclosed in quotation marks"},
		"single quotes":      {`'s3cr3t'`, "is enclosed in quotation marks"},
		"one quote":          {`"`, ""},
		"empty":              {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := secret.Warning(redact.New(test.value))
			if got != test.want {
				t.Errorf("Warning returns %q, want %q", got, test.want)
			}
			if strings.Contains(got, "3t") {
				t.Errorf("Warning shows a part of the secret: %q", got)
			}
		})
	}
}
