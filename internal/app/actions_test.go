package app_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// Actions are the RPCs of AdminService. A role with "*" may call each of them, those that are
// added later included, because the list is taken from the service itself.
func TestActionsWildcardGrantsEachRPC(t *testing.T) {
	var actions []policy.Action
	for _, method := range tokenbrokerv1.AdminService_ServiceDesc.Methods {
		words := regexp.MustCompile("([a-z])([A-Z])").ReplaceAllString(method.MethodName, "${1}_$2")
		actions = append(actions, policy.Action(strings.ToLower(words)))
	}
	if !slices.Equal(slices.Sorted(slices.Values(actions)), slices.Sorted(slices.Values(policy.Actions()))) {
		t.Errorf("the service has %q, policy %q", actions, policy.Actions())
	}
	made := policy.New(policy.Config{
		Callers: []policy.CallerConfig{{Name: "operator", Match: policy.Match{URISAN: "urn:operator"}, Roles: []string{"all"}}},
		Roles:   map[string]policy.Role{"all": {Admin: []policy.AdminGrant{{Actions: []policy.Action{policy.AnyAction}}}}},
	})
	operator := made.Named("operator")
	for _, action := range actions {
		if !operator.MayDo(action, "") {
			t.Errorf("%s is not granted", action)
		}
	}
	if operator.MayDo("reboot", "") {
		t.Error("an action that does not exist is granted")
	}
}
