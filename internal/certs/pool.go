package certs

import (
	"crypto/x509"
	"fmt"
	"os"
)

// Pool returns the authorities in a PEM file, to verify servers. Errors name the setting
// that names the file.
func Pool(setting, file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file) //nolint:gosec // the configuration names it
	if err != nil {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: %s contains no certificate in PEM form", setting, file)
	}
	return pool, nil
}
