package client_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// Each reason of the API has a constant; one more is for reasons that a newer broker adds.
func TestEachReasonHasAConstant(t *testing.T) {
	want := []string{string(client.ReasonUnknown)}
	reasons := tokenbrokerv1.RejectionReason(0).Descriptor().Values()
	for i := range reasons.Len() {
		if value := reasons.Get(i); value.Number() != 0 {
			want = append(want, strings.ToLower(strings.TrimPrefix(string(value.Name()), "REJECTION_REASON_")))
		}
	}
	file, err := parser.ParseFile(token.NewFileSet(), "verify.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for node := range ast.Preorder(file) {
		if spec, ok := node.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "Reason") {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, text)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the client has constants for %v, and the reasons are %v", got, want)
	}
}
