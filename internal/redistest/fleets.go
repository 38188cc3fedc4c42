package redistest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Cluster is a Redis Cluster of three masters with one replica each.
type Cluster struct {
	// Servers are in no particular order: see Master.
	Servers []*Server
}

// StartCluster starts a Redis Cluster and waits until every replica has all data of its
// master: a master that is killed earlier is not replaced.
func StartCluster(t testing.TB, options Options) *Cluster {
	t.Helper()
	return startCluster(t, options, 6, "--cluster-replicas", "1")
}

// StartMasters starts a Redis Cluster of three masters without replicas, which keeps
// serving the other slots when masters fail.
func StartMasters(t testing.TB, options Options) *Cluster {
	t.Helper()
	options.Config = append([]string{"cluster-require-full-coverage no"}, options.Config...)
	return startCluster(t, options, 3)
}

func startCluster(t testing.TB, options Options, size int, arguments ...string) *Cluster {
	t.Helper()
	options.Config = append([]string{
		"cluster-enabled yes",
		"cluster-node-timeout 2000",
		"cluster-announce-ip 127.0.0.1",
	}, options.Config...)
	c := &Cluster{}
	for range size {
		c.Servers = append(c.Servers, start(t, options, freePort(t, true)))
	}
	c.Servers[0].CLI(slices.Concat([]string{"--cluster", "create"}, c.Addrs(), arguments, []string{"--cluster-yes"})...)
	known := "cluster_known_nodes:" + strconv.Itoa(size)
	for _, server := range c.Servers {
		testkit.Succeeds(t, "the cluster", func() error {
			seen := server.CLI("cluster", "info") + server.CLI("info", "replication")
			replicated := len(arguments) == 0 || inStep(seen)
			return unless(strings.Contains(seen, "cluster_state:ok") && strings.Contains(seen, known) && replicated, seen)
		})
	}
	return c
}

// inStep reports whether a server is a replica with all data of its master, or a master
// that has such a replica.
func inStep(replication string) bool {
	return strings.Contains(replication, "master_link_status:up") || strings.Contains(replication, "state=online")
}

// Addrs returns the addresses of all servers.
func (c *Cluster) Addrs() []string { return addrs(c.Servers) }

// Master returns the server that is now the master of the key's slot.
func (c *Cluster) Master(key string) *Server {
	for _, server := range c.Servers {
		select {
		case <-server.process.Exited:
			continue
		default:
		}
		// The master of the slot responds, all others redirect.
		if out, err := server.cli("get", key); err == nil && !strings.Contains(out, "MOVED") {
			return server
		}
	}
	c.Servers[0].t.Fatalf("no server of the cluster is the master of %s", key)
	return nil
}

// MasterName is the name by which the sentinels know the master.
const MasterName = "tokenbroker"

// Sentinel is a master with a replica, watched by three sentinels.
type Sentinel struct {
	Master, Replica *Server
	Sentinels       []*Server
}

// StartSentinel starts them and waits until a failover is possible. The options apply to
// master and replica; the sentinels need no password.
func StartSentinel(t testing.TB, options Options) *Sentinel {
	t.Helper()
	s := &Sentinel{Master: Start(t, options)}
	ofMaster := strings.ReplaceAll(s.Master.Addr(), ":", " ")
	options.Config = append(slices.Clone(options.Config), "replicaof "+ofMaster)
	s.Replica = Start(t, options)
	for _, server := range []*Server{s.Master, s.Replica} {
		testkit.Succeeds(t, "replication", func() error {
			seen := server.CLI("info", "replication")
			return unless(inStep(seen), seen)
		})
	}
	for range 3 {
		s.Sentinels = append(s.Sentinels, startSentinel(t, ofMaster))
	}
	for _, sentinel := range s.Sentinels {
		testkit.Succeeds(t, "the sentinels", func() error {
			seen := sentinel.CLI("sentinel", "ckquorum", MasterName) + sentinel.CLI("sentinel", "replicas", MasterName)
			return unless(strings.HasPrefix(seen, "OK 3 usable") && strings.Contains(seen, "\nslave\n"), seen)
		})
	}
	return s
}

func startSentinel(t testing.TB, ofMaster string) *Server {
	t.Helper()
	s := &Server{t: t, port: freePort(t, false), dir: t.TempDir(), args: []string{"--sentinel"}}
	s.write("redis.conf", []string{
		"bind 127.0.0.1",
		"dir .",
		fmt.Sprintf("port %d", s.port),
		fmt.Sprintf("sentinel monitor %s %s 2", MasterName, ofMaster),
		"sentinel auth-user " + MasterName + " " + admin,
		"sentinel auth-pass " + MasterName + " " + admin,
		fmt.Sprintf("sentinel down-after-milliseconds %s %d", MasterName, (1500 * time.Millisecond).Milliseconds()),
		fmt.Sprintf("sentinel failover-timeout %s %d", MasterName, (5 * time.Second).Milliseconds()),
		"sentinel parallel-syncs " + MasterName + " 1",
	})
	s.run()
	return s
}

// Addrs returns the addresses of the sentinels.
func (s *Sentinel) Addrs() []string { return addrs(s.Sentinels) }

func addrs(servers []*Server) []string {
	var addrs []string
	for _, server := range servers {
		addrs = append(addrs, server.Addr())
	}
	return addrs
}

// unless returns nil if done, else an error with the text of seen.
func unless(done bool, seen string) error {
	if done {
		return nil
	}
	return errors.New(seen)
}
