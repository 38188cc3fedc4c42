package broker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// A rotation that began when one secret was current must not replace another one
// that an operator has made current since.
func TestRotationDoesNotReplaceASecretThatBecameCurrentMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 2)
		r.takes("one", "two", "three")
		r.rotate(rotation("one"))
		r.rotate(rotation("two"))
		r.idp.SetDelay(2 * time.Second)
		rolledBack := make(chan error, 1)
		go func() {
			_, err := r.all[0].RollbackSecret(t.Context(), policy.Self(), broker.SecretChange{Client: "orders", Request: "back"})
			rolledBack <- err
		}()
		time.Sleep(500 * time.Millisecond)
		_, err := r.all[1].RotateSecret(t.Context(), policy.Self(), rotation("three"))
		told := wantError(t, err, broker.FailedPrecondition, broker.ReasonSecretChanged)
		if err := <-rolledBack; err != nil {
			t.Fatal(err)
		}
		if told.Metadata["current_version"] != idOf("one") {
			t.Errorf("the error names %q as current", told.Metadata["current_version"])
		}
		r.expectSecrets("three:pending two:previous one:current")
	})
}
