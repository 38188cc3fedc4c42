package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// completionTimeout bounds the call for a completion: a person waits for it.
const completionTimeout = time.Second

// completeClients completes names of clients as the arguments from first to last. It
// knows the names that the caller may list, and none if the broker does not respond.
func (c *connection) completeClients(cmd *cobra.Command, first, last int) {
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		switch {
		case len(args) < first: // FILE
			return nil, cobra.ShellCompDirectiveDefault
		case len(args) > last:
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names := slices.DeleteFunc(c.clientNames(cmd), func(name string) bool { return slices.Contains(args[first:], name) })
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// clientNames returns the names of the clients that the caller may list.
func (c *connection) clientNames(cmd *cobra.Command) (names []string) {
	broker, err := c.open(cmd)
	if err != nil {
		return nil
	}
	defer func() { _ = broker.Close() }()
	ctx, cancel := context.WithTimeout(cmd.Context(), min(c.timeout, completionTimeout))
	defer cancel()
	clients, err := listClients(ctx, tokenbrokerv1.NewAdminServiceClient(broker.Conn()))
	if err != nil {
		return nil
	}
	for _, one := range clients {
		names = append(names, one.GetName())
	}
	return names
}
