package fleet_test

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/fleet"
)

// A record cannot hold a text other than a name of the configuration: no field has a type
// that a secret, a token, a claim, an error or the name of a caller would fit in without a
// conversion.
func TestRecordHasNoTypeForTexts(t *testing.T) {
	name, moment := reflect.TypeFor[fleet.Name](), reflect.TypeFor[time.Time]()
	// Every Name of a record, by its path. To add one, make sure that it comes from the
	// configuration, or from the process itself.
	names := []string{
		"Replica.ID", "Replica.Host", "Replica.Version", "Ring.Primary", "Ring.IDs", "Store.Servers.Name", "Issuers.Name",
		"Clients.Name", "Clients.Home", "Certificates.Name",
	}
	var got []string
	var walk func(path string, of reflect.Type)
	walk = func(path string, of reflect.Type) {
		switch {
		case of == name:
			got = append(got, strings.TrimPrefix(path, "."))
		case of == moment:
		case of.Kind() == reflect.Pointer, of.Kind() == reflect.Slice:
			walk(path, of.Elem())
		case of.Kind() == reflect.Struct:
			for field := range of.Fields() {
				walk(path+"."+field.Name, field.Type)
			}
		case of == reflect.TypeFor[fleet.Digest](), of.Kind() == reflect.Bool, of.Kind() == reflect.Int, of.Kind() == reflect.Int64, of.Kind() == reflect.Uint64:
		case of.Kind() == reflect.Uint8 && of.PkgPath() == reflect.TypeFor[fleet.Record]().PkgPath(): // an enumeration
		default:
			t.Errorf("%s is a %v, which can hold any text", path, of)
		}
	}
	walk("", reflect.TypeFor[fleet.Record]())
	slices.Sort(got)
	slices.Sort(names)
	if diff := cmp.Diff(names, got); diff != "" {
		t.Errorf("the names in a record: %s", diff)
	}
}

func TestRecordSurvivesTheStore(t *testing.T) {
	want := record("a")
	want.Clients[0].Failure, want.Clients[0].Failed = fleet.RequestRefused, now
	want.Form = 1
	data, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := fleet.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestRecordOfANewerVersionIsRead(t *testing.T) {
	data := `{"v":1,"replica":{"id":"b","host":"h","version":"v9","started":"2026-03-01T00:00:00Z","written":"2026-03-01T00:00:00Z","zone":"x"},
	  "store":{"kind":"etcd","durable":"maybe","quorum":3},"clients":[{"name":"orders","state":"paused","failure":"out_of_cheese"}],"weather":{"rain":true}}`
	got, err := fleet.Decode([]byte(data))
	if err != nil {
		t.Fatal(err)
	}
	if got.Replica.Version != "v9" || got.Store.Kind != fleet.UnknownStore || got.Clients[0].State != fleet.ClientUnknown || got.Clients[0].Failure != fleet.Unknown {
		t.Errorf("%+v", got)
	}
	for _, other := range []string{`{"v":2,"replica":{}}`, `{"replica":{}}`, ``, `[]`, `{"v":1,"replica":3}`} {
		if _, err := fleet.Decode([]byte(other)); !errors.Is(err, fleet.ErrForm) {
			t.Errorf("%s: %v", other, err)
		}
	}
}

func TestRecordIsBounded(t *testing.T) {
	big := record("a")
	long := fleet.Name(strings.Repeat("<<<<<<ä\u202e", 200)) // JSON writes < in six bytes
	for i := range 20_000 {
		c := fleet.Client{
			Name: long + fleet.Name(fmt.Sprint(i)), State: fleet.ClientOK, Home: long, Success: now, Failed: now, Failure: fleet.Unreachable, Resolved: true,
			Generation: 1 << 60, Changed: now, SecretSince: now,
		}
		if i%1000 == 999 {
			c.State = fleet.ClientRefused
		}
		big.Clients = append(big.Clients, c)
	}
	for range 1000 {
		big.Issuers = append(big.Issuers, fleet.Issuer{Name: long, Loaded: now})
		big.Certificates = append(big.Certificates, fleet.Certificate{Use: fleet.ClientUse, Name: long, Begins: now, Ends: now})
		big.Store.Servers = append(big.Store.Servers, fleet.Server{Name: long, ReadsSince: now, WritesSince: now, Cause: fleet.Unreachable})
	}
	data, err := big.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > fleet.MaxSize {
		t.Errorf("%d bytes", len(data))
	}
	got, err := fleet.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, c := range got.Clients {
		if c.State == fleet.ClientRefused {
			refused++
		}
		if len(c.Name) > fleet.MaxName || strings.ContainsRune(string(c.Name), '\u202e') {
			t.Fatalf("a name of %d bytes: %q", len(c.Name), c.Name)
		}
	}
	if refused != 20 {
		t.Errorf("%d of 20 clients with a problem are left", refused)
	}
	if got.Omitted+len(got.Clients) != len(big.Clients) {
		t.Errorf("%d clients and %d omitted of %d", len(got.Clients), got.Omitted, len(big.Clients))
	}
}

// The bound must hold without dropping clients for a realistic fleet.
func TestRecordHoldsThousandsOfClients(t *testing.T) {
	r := record("a")
	for i := range 3000 {
		r.Clients = append(r.Clients, fleet.Client{
			Name: fleet.Name(fmt.Sprintf("service-number-%d", i)), State: fleet.ClientOK, Success: now, Generation: 3, Changed: now, SecretSince: now,
		})
	}
	data, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := fleet.Decode(data)
	if err != nil || got.Omitted != 0 {
		t.Errorf("%v, %d omitted of %d in %d bytes", err, got.Omitted, len(r.Clients), len(data))
	}
	t.Logf("%d bytes for each client", len(data)/len(r.Clients))
}

func FuzzDecode(f *testing.F) {
	data, err := record("a").Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(_ *testing.T, data []byte) {
		r, err := fleet.Decode(data)
		if err != nil {
			return
		}
		fleet.Summarize(fleet.View{Members: []fleet.Member{{Presence: fleet.Alive, Replica: r.Replica, Record: r}}}, record("self"), now)
	})
}
