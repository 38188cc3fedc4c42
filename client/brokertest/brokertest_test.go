package brokertest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAnHourTakesNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		orders := b.Client().TokenSource("orders-api")
		first, err := orders.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		second, err := orders.Token(t.Context())
		if err != nil || second.AccessToken() == first.AccessToken() {
			t.Errorf("an hour later: the same token: %v, %v", err == nil, err)
		}
		if n := b.IdPRequests(); n != 2 {
			t.Errorf("%d requests at the identity provider", n)
		}
	})
}

var _ = codes.OK
var _ = status.Code
var _ context.Context
var _ client.Option
