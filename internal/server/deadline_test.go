package server

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// bounded runs wait in a call that may take a minute.
func bounded(ctx context.Context, wait func(ctx context.Context) error) error {
	o := newObserver(Config{Logger: slog.New(slog.DiscardHandler), Deadline: time.Minute}, nil)
	_, err := o.unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: healthpb.Health_Check_FullMethodName}, func(ctx context.Context, _ any) (any, error) { return nil, wait(ctx) })
	return err
}

func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestDeadlineEndsAWaitingCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		err := bounded(t.Context(), untilDone)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Minute {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	})
}

func TestDeadlineCountsFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		err := bounded(t.Context(), func(ctx context.Context) error {
			time.Sleep(59 * time.Second)
			return untilDone(ctx)
		})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Minute {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	})
}

func TestPassedDeadlineFailsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := bounded(t.Context(), func(ctx context.Context) error {
			if err := ctx.Err(); err != nil {
				t.Errorf("at the beginning: %v", err)
			}
			time.Sleep(61 * time.Second)
			return ctx.Err()
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error = %v", err)
		}
	})
}

func TestEarlierCallerDeadlineWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := bounded(ctx, func(ctx context.Context) error {
			if end, ok := ctx.Deadline(); !ok || end.Sub(begun) != time.Second {
				t.Errorf("Deadline() = %v, %v", end.Sub(begun), ok)
			}
			return untilDone(ctx)
		})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Second {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	})
}

func TestCanceledCallerEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := bounded(ctx, untilDone); !errors.Is(err, context.Canceled) {
			t.Errorf("error = %v", err)
		}
	})
}

func TestWaitEndsWithTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := make(chan error, 1)
		err := bounded(t.Context(), func(ctx context.Context) error {
			go func() { left <- untilDone(ctx) }()
			synctest.Wait()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("who waits on after the call: %v", err)
		}
	})
}
