package client

import (
	"errors"
	"sync/atomic"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
	"google.golang.org/grpc/balancer/endpointsharding"
	"google.golang.org/grpc/balancer/pickfirst"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
)

// balancerName is the load balancing policy of this package's clients.
const balancerName = "tokenbroker_prefer_serving"

//nolint:gochecknoinits // gRPC finds policies by name, and they must be registered before the first use
func init() { balancer.Register(preferServing{}) }

// preferServing builds a policy that uses all replicas that report serving, in
// turn, as round_robin does. If no replica reports serving, it uses all
// connected replicas: a draining replica serves until it closes its listener
// and may be the only reachable one. With round_robin all calls would fail.
type preferServing struct{}

// Name implements balancer.Builder.
func (preferServing) Name() string { return balancerName }

// Build implements balancer.Builder.
func (preferServing) Build(conn balancer.ClientConn, opts balancer.BuildOptions) balancer.Balancer {
	return &servingBalancer{endpointsharding.NewBalancer(&servingConn{conn}, opts, newReplica, endpointsharding.Options{}), conn, false}
}

type servingBalancer struct {
	balancer.Balancer

	conn     balancer.ClientConn
	resolved bool // the name led to replicas
}

// UpdateClientConnState implements balancer.Balancer.
func (b *servingBalancer) UpdateClientConnState(state balancer.ClientConnState) error {
	b.resolved = len(state.ResolverState.Endpoints) > 0
	state.ResolverState = pickfirst.EnableHealthListener(state.ResolverState)
	err := b.Balancer.UpdateClientConnState(state)
	if !b.resolved { // gRPC's resolver reports an unknown host so
		b.fail(errUnknownHost)
	}
	return err
}

// ResolverError implements balancer.Balancer.
func (b *servingBalancer) ResolverError(err error) {
	b.Balancer.ResolverError(err)
	if !b.resolved {
		b.fail(err)
	}
}

var errUnknownHost = errors.New("the host of the token broker is unknown: DNS has no address of it")

// fail makes calls fail with err. The combined balancer cannot do so without replicas.
func (b *servingBalancer) fail(err error) {
	b.conn.UpdateState(balancer.State{ConnectivityState: connectivity.TransientFailure, Picker: base.NewErrPicker(err)})
}

// servingConn is the channel as the combined balancer of all replicas sees it.
type servingConn struct{ balancer.ClientConn }

// UpdateState implements balancer.ClientConn.
func (c *servingConn) UpdateState(state balancer.State) {
	if state.ConnectivityState != connectivity.Ready {
		if connected := connectedReplicas(state.Picker); len(connected) > 0 {
			state = balancer.State{ConnectivityState: connectivity.Ready, Picker: &roundRobinPicker{connections: connected}}
		}
	}
	c.ClientConn.UpdateState(state)
}

// connectedReplicas returns the connections to replicas that report not
// serving.
func connectedReplicas(picker balancer.Picker) (connected []balancer.SubConn) {
	for _, child := range endpointsharding.ChildStatesFromPicker(picker) {
		if replica, ok := child.State.Picker.(*notServingPicker); ok {
			connected = append(connected, replica.connection)
		}
	}
	return connected
}

type roundRobinPicker struct {
	connections []balancer.SubConn
	next        atomic.Uint32
}

// Pick implements balancer.Picker.
func (p *roundRobinPicker) Pick(balancer.PickInfo) (balancer.PickResult, error) {
	return balancer.PickResult{SubConn: p.connections[int(p.next.Add(1))%len(p.connections)]}, nil
}

// replicaConn is the channel as the balancer of one replica sees it.
type replicaConn struct {
	balancer.ClientConn

	connected atomic.Pointer[balancer.SubConn] // regardless of health; nil if not connected
}

func newReplica(conn balancer.ClientConn, opts balancer.BuildOptions) balancer.Balancer {
	return balancer.Get(pickfirst.Name).Build(&replicaConn{ClientConn: conn}, opts)
}

// NewSubConn implements balancer.ClientConn.
func (r *replicaConn) NewSubConn(addresses []resolver.Address, opts balancer.NewSubConnOptions) (balancer.SubConn, error) {
	var subConn balancer.SubConn
	listener := opts.StateListener
	opts.StateListener = func(state balancer.SubConnState) {
		if state.ConnectivityState == connectivity.Ready {
			r.connected.Store(&subConn)
		} else {
			r.connected.CompareAndSwap(&subConn, nil)
		}
		listener(state)
	}
	var err error
	subConn, err = r.ClientConn.NewSubConn(addresses, opts) //nolint:staticcheck // pick_first, which is wrapped, calls it
	return subConn, err
}

// UpdateState implements balancer.ClientConn.
func (r *replicaConn) UpdateState(state balancer.State) {
	if connected := r.connected.Load(); connected != nil && state.ConnectivityState == connectivity.TransientFailure {
		state.Picker = &notServingPicker{state.Picker, *connected}
	}
	r.ClientConn.UpdateState(state)
}

// notServingPicker is the picker of a connected replica that reports not serving.
type notServingPicker struct {
	balancer.Picker

	connection balancer.SubConn
}
