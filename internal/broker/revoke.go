package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/verify"
)

const (
	// revocationShards spread the revocations over values of the store.
	revocationShards = 16
	// revocationForm is the version of the stored form.
	revocationForm = 1
	// loadInterval is how far apart attempts to load them for the first time are.
	loadInterval = time.Second
)

// revoker keeps the revocations of this replica the same as those in the store.
//
// The store has them in a few values.
type revoker struct {
	store   store.Store
	shards  []string // the keys of the values
	changes store.ChangeCount

	// known is nil until they were loaded once.
	known atomic.Pointer[revocations]
	// currentAt is when they were last known to be those of the store, in Unix
	// nanoseconds; 0: never.
	currentAt atomic.Int64
	// news coalesces what the store tells.
	news store.Coalescer

	// turn is held while the store is read or changed, by whoever uses what
	// follows.
	turn    chan struct{}
	tried   time.Time // when loading last failed
	failure error

	marker  Marker        // nil: there is none
	putBack time.Duration // for others, where the store has lost its data
	log     *slog.Logger
	// lostSince is when this replica first found the store without its data, and knew no
	// revocations itself; zero: the store has them.
	lostSince time.Time
	// unreadable is why this replica cannot read revocations that others have stored;
	// nil: it can.
	unreadable atomic.Pointer[error]
}

// take takes the turn, unless ctx ends before.
func (r *revoker) take(ctx context.Context) error {
	select {
	case r.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *revoker) give() { <-r.turn }

func newRevoker(s store.Store, n names, cfg Config) *revoker {
	tag := "{" + n.name("revocations") + "}"
	r := &revoker{store: s, turn: make(chan struct{}, 1), marker: cfg.Marker, putBack: cfg.PutBack, log: cfg.Logger}
	r.changes.Store, r.changes.Key = s, tag+"changes"
	for i := range revocationShards {
		r.shards = append(r.shards, tag+strconv.Itoa(i))
	}
	return r
}

// set returns the revocations, loading them first where that was never done, or did not
// succeed for a reason that note keeps in mind. An error means that nothing may be called
// good.
func (r *revoker) set(ctx context.Context) (*revocations, error) {
	if usable := r.usable(); usable != nil {
		return usable, nil
	}
	if err := r.take(ctx); err != nil {
		return nil, err
	}
	defer r.give()
	if usable := r.usable(); usable != nil {
		return usable, nil
	}
	if time.Since(r.tried) < loadInterval {
		return nil, r.failure
	}
	if _, err := r.load(ctx); err != nil {
		r.tried, r.failure = time.Now(), err
		if reason := r.unreadable.Load(); reason != nil {
			r.failure = *reason // also while the store is away
		}
		return nil, r.failure
	}
	return r.known.Load(), nil
}

// poll looks whether there was a change. In some rounds it does not trust the
// counter.
func (r *revoker) poll(ctx context.Context, round int) {
	if r.take(ctx) != nil {
		return
	}
	defer r.give()
	if r.usable() != nil && round%store.ReloadRounds != 0 {
		unchanged, err := r.unchanged(ctx)
		if unchanged {
			r.currentAt.Store(time.Now().UnixNano())
		}
		if unchanged || err != nil {
			r.note(err)
			return
		}
	}
	_, _ = r.load(ctx) // if not now, then in the next round
}

// unchanged reports whether the store still has its marker and has seen no change that is
// not known here.
func (r *revoker) unchanged(ctx context.Context) (bool, error) {
	marked, err := r.marked(ctx)
	if err != nil || !marked {
		return false, err
	}
	_, moved, err := r.changes.Moved(ctx)
	return err == nil && !moved, err
}

// load reads all revocations, adopts what is new, and puts back what the store
// has lost, and after that its marker. It returns the numbers of the values as they now
// stand.
func (r *revoker) load(ctx context.Context) (numbers []uint64, err error) {
	defer func() { r.note(err) }()
	marked, found, err := r.read(ctx)
	if err != nil {
		r.lostSince = time.Time{} // others cannot put anything back meanwhile
		return nil, err
	}
	count := found[len(r.shards)].Number
	lost := !marked || count == 0
	if err := r.mayBegin(lost); err != nil {
		return nil, err
	}
	numbers, err = r.adopt(ctx, found[:len(r.shards)], count, lost)
	if err == nil && !marked {
		err = r.mark(ctx)
	}
	return numbers, err
}

// read reads the marker, and then the values and after them the count of changes.
func (r *revoker) read(ctx context.Context) (marked bool, found []store.Entry, err error) {
	if marked, err = r.marked(ctx); err != nil {
		return false, nil, err
	}
	found, err = r.store.Get(ctx, slices.Concat(r.shards, []string{r.changes.Key})...)
	return marked, found, err
}

// adopt takes over what was read, and writes what the store lacks. What the store has
// lost is counted as one change, after all of it was written: a replica that has just
// started takes a store without a count for one that has lost its data.
func (r *revoker) adopt(ctx context.Context, found []store.Entry, count uint64, lost bool) (numbers []uint64, err error) {
	var stored []*Revocation
	numbers = make([]uint64, len(found))
	for i, entry := range found {
		some, err := readRevocations(entry)
		if err != nil {
			return nil, err
		}
		numbers[i] = entry.Number
		stored = append(stored, some...)
	}
	now := time.Now()
	all := merged(r.all(), stored, now)
	r.known.Store(newRevocations(all))
	changed := lost || count < r.changes.Seen.Load()
	kept := byShard(all)
	for i, before := range byShard(merged(stored, nil, now)) {
		if !same(before, kept[i]) || found[i].Aged {
			if numbers[i], err = r.write(ctx, i, numbers[i], kept[i]); err != nil {
				return nil, err
			}
			changed = true
		}
	}
	r.changes.Seen.Store(max(count, r.changes.Seen.Load()))
	if changed {
		if err := r.changes.Raise(ctx); err != nil {
			return nil, err
		}
	}
	r.currentAt.Store(now.UnixNano())
	return numbers, nil
}

// write replaces a value that was read with a number.
func (r *revoker) write(ctx context.Context, shard int, number uint64, content []*Revocation) (uint64, error) {
	value, err := json.Marshal(storedRevocations{revocationForm, content})
	if err != nil {
		return 0, err
	}
	return store.CompareAndSwap(ctx, r.store, r.shards[shard], number, value)
}

// change applies a change of one revocation to the store and to this replica. It
// returns nil only if the store has it.
func (r *revoker) change(ctx context.Context, made *Revocation) error {
	if err := r.take(ctx); err != nil {
		return err
	}
	defer r.give()
	return store.RetryOvertaken(func() error { return r.tryChange(ctx, made) })
}

func (r *revoker) tryChange(ctx context.Context, made *Revocation) error {
	numbers, err := r.load(ctx)
	if err != nil {
		return err
	}
	all := merged(r.all(), []*Revocation{made}, time.Now())
	if len(all) > MaxRevocations {
		return errTooManyRevocations
	}
	shard := shardOf(made.ID)
	if _, err := r.write(ctx, shard, numbers[shard], byShard(all)[shard]); err != nil {
		return err
	}
	r.known.Store(newRevocations(all))
	return r.changes.Raise(ctx)
}

var errTooManyRevocations = fmt.Errorf("there are %d revocations already", MaxRevocations)

func (r *revoker) count() int {
	if known := r.known.Load(); known != nil {
		return len(known.byID)
	}
	return 0
}

// all are those that are known here, oldest first.
func (r *revoker) all() []*Revocation {
	known := r.known.Load()
	if known == nil {
		return nil
	}
	all := make([]*Revocation, 0, len(known.byID))
	for _, one := range known.byID {
		all = append(all, one)
	}
	slices.SortFunc(all, oldestFirst)
	return all
}

// storedRevocations is a value of the store.
type storedRevocations struct {
	Form        int           `json:"v"`
	Revocations []*Revocation `json:"revocations"`
}

// readRevocations does not take for nothing what it cannot read: that would lift
// revocations.
func readRevocations(entry store.Entry) ([]*Revocation, error) {
	switch {
	case entry.Unopened:
		return nil, errSealedRevocations
	case entry.Number == 0:
		return nil, nil
	}
	var s storedRevocations
	if json.Unmarshal(entry.Value, &s) != nil || s.Form != revocationForm {
		return nil, errNewerRevocations
	}
	return s.Revocations, nil
}

func byShard(all []*Revocation) [revocationShards][]*Revocation {
	var shards [revocationShards][]*Revocation
	for _, one := range all {
		i := shardOf(one.ID)
		shards[i] = append(shards[i], one)
	}
	return shards
}

// shardOf spreads IDs, which are random enough.
func shardOf(id string) int { return int(id[1]+31*id[2]) % revocationShards }

// Revoke makes verification refuse tokens from now on, in this replica at once
// and in the others within 5 s. asked has everything but ID, CreatedAt and CreatedBy. The
// same revocation with the same request is one, however often it comes. The
// error is always an [*apierror.Error]; nil means that the store has it.
func (b *Broker) Revoke(ctx context.Context, caller *policy.Caller, asked Revocation, request string) (Revocation, error) {
	made, err := b.revoke(ctx, caller, asked, request)
	about := asked.about()
	about.Revocation, about.RequestID = made.ID, request
	b.acted(ctx, caller, policy.RevokeTokens, err, about)
	return made, err
}

func (b *Broker) revoke(ctx context.Context, caller *policy.Caller, asked Revocation, request string) (Revocation, error) {
	if denied := b.mayAct(caller, policy.RevokeTokens, ""); denied != nil {
		return Revocation{}, denied
	}
	if err := b.checkRevocation(&asked, time.Now()); err != nil {
		return Revocation{}, err
	}
	t := asked.target()
	before := strconv.FormatInt(asked.IssuedBefore.UnixNano(), 10)
	// The letter keeps an ID from beginning with a hyphen, which command lines take for
	// a flag.
	asked.ID = "r" + b.names.name("revocation", []byte(request), []byte(t.issuer), []byte(t.kind), []byte(t.value), []byte(before))
	asked.CreatedAt, asked.CreatedBy = time.Now().UTC().Truncate(time.Millisecond), caller.Name()
	if err := b.revoker.change(ctx, &asked); err != nil {
		return Revocation{}, notRevoked(err)
	}
	b.log.Info("tokens revoked", "issuer", t.issuer, "kind", t.kind, "revocation", asked.ID, "expires_at", asked.ExpiresAt, "caller", caller.Name())
	return *b.revoker.known.Load().byID[asked.ID], nil
}

// checkRevocation refuses what would not do what it seems to. A revocation that says
// not when it ends outlives all tokens that there can be.
func (b *Broker) checkRevocation(r *Revocation, now time.Time) *apierror.Error {
	life, known := b.setup.Load().verifier.MaxTokenLife(r.Issuer)
	if r.ExpiresAt.IsZero() {
		last := now
		if r.IssuedBefore.After(now) {
			last = r.IssuedBefore
		}
		r.ExpiresAt = last.Add(life + time.Second).UTC().Truncate(time.Second)
	}
	fault := func(field, format string, args ...any) *apierror.Error {
		return &apierror.Error{Code: apierror.InvalidArgument, Reason: apierror.ReasonInvalidRequest, Field: field, Message: field + ": " + fmt.Sprintf(format, args...)}
	}
	named := 0
	for _, given := range []bool{r.TokenID != "", r.Subject != "", r.ClientID != "", r.All} {
		if given {
			named++
		}
	}
	switch {
	case !known:
		return fault("revocation.issuer", "not one of the issuers that are configured, which are compared byte by byte")
	case named != 1:
		return fault("revocation", "name exactly one of token_id, subject, client_id and all")
	case r.All && r.IssuedBefore.IsZero():
		return fault("revocation.issued_before", "it is required with all, which would refuse every token of the issuer for ever otherwise")
	case !r.ExpiresAt.After(now):
		return fault("revocation.expires_at", "it must be in the future")
	case r.ExpiresAt.After(now.Add(MaxRevocationLife)):
		return fault("revocation.expires_at", "it must be within 10 years")
	case !r.IssuedBefore.IsZero() && r.ExpiresAt.Before(r.IssuedBefore.Add(life)):
		return fault("revocation.expires_at", "tokens issued before issued_before may live until %s: a revocation that ends sooner would bring them back",
			r.IssuedBefore.Add(life).UTC().Format(time.RFC3339))
	default:
		return nil
	}
}

// notRevoked is the error for what the store did not confirm.
func notRevoked(err error) *apierror.Error {
	if errors.Is(err, errTooManyRevocations) {
		return &apierror.Error{
			Code: apierror.ResourceExhausted, Reason: apierror.ReasonTooManyRevocations, Cause: err,
			Message: fmt.Sprintf("%d revocations are kept and no more: revoke by subject, client or issued_before instead of token by token, or wait until some expire", MaxRevocations),
		}
	}
	return unconfirmed(err, "the store did not confirm the revocation, or its end", "ask again", nil)
}

// Revocations returns those in force, of an issuer or of all (empty), oldest
// first. The error is always an [*apierror.Error].
func (b *Broker) Revocations(ctx context.Context, caller *policy.Caller, issuer string) ([]Revocation, error) {
	found, err := b.revocations(ctx, caller, issuer)
	b.acted(ctx, caller, policy.ListRevocations, err, audit.Event{Issuer: issuer})
	return found, err
}

func (b *Broker) revocations(ctx context.Context, caller *policy.Caller, issuer string) ([]Revocation, error) {
	if denied := b.mayAct(caller, policy.ListRevocations, ""); denied != nil {
		return nil, denied
	}
	if _, err := b.revoker.set(ctx); err != nil {
		return nil, revocationsUnknown(err)
	}
	now := time.Now()
	var found []Revocation
	for _, one := range b.revoker.all() {
		if !one.Deleted && !one.over(now) && (issuer == "" || one.Issuer == issuer) {
			found = append(found, *one)
		}
	}
	return found, nil
}

// Unrevocation selects a revocation to delete.
type Unrevocation struct {
	ID string
	// Request identifies the call.
	Request string
	// Reason is why, for the audit log.
	Reason string
}

// Unrevoke deletes a revocation before it expires. Deleting it again has no effect.
// The error is always an [*apierror.Error].
func (b *Broker) Unrevoke(ctx context.Context, caller *policy.Caller, asked Unrevocation) error {
	deleted, err := b.unrevoke(ctx, caller, asked.ID)
	about := deleted.about()
	about.Revocation, about.RequestID, about.Comment = asked.ID, asked.Request, asked.Reason
	b.acted(ctx, caller, policy.DeleteRevocation, err, about)
	return err
}

func (b *Broker) unrevoke(ctx context.Context, caller *policy.Caller, id string) (ended Revocation, err error) {
	if denied := b.mayAct(caller, policy.DeleteRevocation, ""); denied != nil {
		return Revocation{}, denied
	}
	if _, err := b.revoker.set(ctx); err != nil {
		return Revocation{}, revocationsUnknown(err)
	}
	known := b.revoker.known.Load().byID[id]
	if known == nil {
		b.revoker.poll(ctx, 0) // another replica may just have made it
		known = b.revoker.known.Load().byID[id]
	}
	if known == nil || known.over(time.Now()) {
		return Revocation{}, &apierror.Error{Code: apierror.NotFound, Reason: apierror.ReasonNoSuchRevocation, Message: "no revocation has this id; it may have expired"}
	}
	deleted := *known
	deleted.Deleted = true
	if err := b.revoker.change(ctx, &deleted); err != nil {
		return *known, notRevoked(err)
	}
	b.log.Info("revocation deleted", "issuer", known.Issuer, "revocation", id, "caller", caller.Name())
	return *known, nil
}

// revocationsUnknown: what was not loaded once may hold anything.
func revocationsUnknown(err error) *apierror.Error {
	return &apierror.Error{
		Code: apierror.Unavailable, Reason: apierror.ReasonRevocationsUnknown, RetryAfter: loadInterval, Cause: err,
		Message: "this replica does not know all revocations, so it can call no token good; try again, and treat the token as not verified until then",
	}
}

// unrevoked judges a good token by the revocations.
func (b *Broker) unrevoked(ctx context.Context, result verify.Result) (verify.Result, error) {
	set, err := b.revoker.set(ctx)
	if err != nil {
		return verify.Result{}, revocationsUnknown(err)
	}
	if set.revokes(result.Facts, time.Now()) == nil {
		return result, nil
	}
	return verify.Result{Rejection: &verify.Rejection{Reason: verify.Revoked, Message: "The token was revoked."}}, nil
}
