package apiserver

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"gitk8s.dev/gitk8s/controlplane/etcd"
)

func testAddresses(t *testing.T, cidr string) (*addresses, *time.Time) {
	t.Helper()
	store, err := etcd.Start(t.Context(), etcd.Config{DataDir: filepath.Join(t.TempDir(), "etcd")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	now := time.Now()
	a, err := newAddresses(store.Client(), netip.MustParsePrefix(cidr), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	return a, &now
}

// Everybody gets an address of their own until there are none left.
func TestAddressesAreUnique(t *testing.T) {
	a, _ := testAddresses(t, "10.9.0.0/27")
	var mu sync.Mutex
	var group sync.WaitGroup
	given := map[string]bool{}
	for range 29 {
		group.Go(func() {
			ip, err := a.allocate(t.Context(), "", "ns/x")
			mu.Lock()
			defer mu.Unlock()
			if err != nil || given[ip] || ip == a.first() {
				t.Errorf("%s %v", ip, err)
			}
			given[ip] = true
		})
	}
	group.Wait()
	if _, err := a.allocate(t.Context(), "", "ns/x"); !errors.Is(err, errExhausted) {
		t.Errorf("a full range: %v", err)
	}
	a.release(t.Context(), "10.9.0.9", "ns/other")
	if err := a.check(t.Context(), "10.9.0.9"); !errors.Is(err, errTaken) {
		t.Errorf("somebody else gave it back: %v", err)
	}
	a.release(t.Context(), "10.9.0.9", "ns/x")
	if ip, err := a.allocate(t.Context(), "", "ns/x"); err != nil || ip != "10.9.0.9" {
		t.Errorf("%s %v", ip, err)
	}
}

func TestAddressesAreRepaired(t *testing.T) {
	a, now := testAddresses(t, "10.9.0.0/24")
	take := func(ip, owner string) {
		t.Helper()
		if _, err := a.allocate(t.Context(), ip, owner); err != nil {
			t.Fatal(err)
		}
	}
	take("10.9.0.5", "ns/kept")
	take("10.9.0.6", "ns/lost")
	*now = now.Add(orphanAge + time.Second)
	take("10.9.0.7", "ns/just-being-made")
	owners := map[string]string{"10.9.0.5": "ns/kept", "10.9.0.8": "ns/without-key"}
	if err := a.repair(t.Context(), owners); err != nil {
		t.Fatal(err)
	}
	for ip, taken := range map[string]bool{"10.9.0.5": true, "10.9.0.6": false, "10.9.0.7": true, "10.9.0.8": true} {
		if err := a.check(context.Background(), ip); errors.Is(err, errTaken) != taken {
			t.Errorf("%s: %v", ip, err)
		}
	}
}

func TestServiceNetworkTooSmall(t *testing.T) {
	for _, cidr := range []string{"10.9.0.0/31", "fd00::/112"} {
		if _, err := newAddresses(nil, netip.MustParsePrefix(cidr), time.Now); err == nil {
			t.Errorf("%s was accepted", cidr)
		}
	}
}
