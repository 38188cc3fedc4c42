package exchange

import "github.com/cezzis/tokenbroker/internal/jose"

// maxActors bounds the actors in the audit log: a token may nest any number.
const maxActors = 4

// actors returns the nested actors of a token (RFC 8693 section 4.1), the latest first.
func actors(payload []byte) []string {
	claims, err := jose.ParseObject(payload)
	if err != nil {
		return nil
	}
	var list []string
	for len(list) < maxActors {
		act, present, err := claims.Object("act")
		if err != nil || !present {
			break
		}
		name, _, err := act.Text("sub")
		if err != nil || name == "" {
			name, _, _ = act.Text("client_id") // some IdPs name the client only
		}
		list, claims = append(list, name), act
	}
	return list
}
