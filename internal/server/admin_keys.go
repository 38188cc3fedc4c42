package server

import (
	"context"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/rotation"
)

// RotateKey makes a new key for a client.
func (a *admin) RotateKey(ctx context.Context, req *tokenbrokerv1.RotateKeyRequest) (*tokenbrokerv1.RotateKeyResponse, error) {
	change, invalid := changeOf(req)
	if invalid != nil {
		return nil, statusOf(invalid)
	}
	result, err := a.rotator.RotateKey(ctx, CallerOf(ctx), rotation.NewKey{Change: change, Compromised: req.GetCompromised()})
	if err != nil {
		return nil, rotationStatus(err)
	}
	resp := rotated(result)
	return &tokenbrokerv1.RotateKeyResponse{Version: resp.GetVersion(), Steps: resp.GetSteps()}, nil
}

// ListKeys returns the public keys of a client.
func (a *admin) ListKeys(ctx context.Context, req *tokenbrokerv1.ListKeysRequest) (*tokenbrokerv1.ListKeysResponse, error) {
	if err := firstOf(checkUnknown(req), checkClientName(req.GetClientName())); err != nil {
		return nil, statusOf(err)
	}
	keys, err := a.rotator.ListKeys(ctx, CallerOf(ctx), req.GetClientName())
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &tokenbrokerv1.ListKeysResponse{Url: keys.URL, Jwks: keys.Document, NextRotationAt: timestampOf(keys.NextAt), Problem: keys.Problem}
	for _, key := range keys.Keys {
		resp.Keys = append(resp.Keys, &tokenbrokerv1.PublicKey{
			Version: key.Version, Kid: key.ID, Algorithm: key.Algorithm, State: secretState(key.State), StateSince: timestampOf(key.Since),
			ShownAt: timestampOf(key.ShownAt), UsableFrom: timestampOf(key.UsableFrom), PublishedUntil: timestampOf(key.PublishedUntil),
		})
	}
	return resp, nil
}
