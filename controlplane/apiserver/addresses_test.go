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
	for cidr, ninth := range map[string]string{"10.9.0.0/27": "10.9.0.9", "fd00:9::/123": "fd00:9::9"} {
		t.Run(cidr, func(t *testing.T) { testUnique(t, cidr, ninth) })
	}
}

func testUnique(t *testing.T, cidr, ninth string) {
	a, _ := testAddresses(t, cidr)
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
	a.release(t.Context(), ninth, "ns/other")
	if err := a.check(t.Context(), ninth); !errors.Is(err, errTaken) {
		t.Errorf("somebody else gave it back: %v", err)
	}
	a.release(t.Context(), ninth, "ns/x")
	if ip, err := a.allocate(t.Context(), "", "ns/x"); err != nil || ip != ninth {
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
	// Both ranges' addresses are kept together.
	six, err := newAddresses(a.client, netip.MustParsePrefix("fd00:9::/112"), a.now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := six.allocate(t.Context(), "fd00:9::7", "ns/kept"); err != nil {
		t.Fatal(err)
	}
	owners := map[string]string{"10.9.0.5": "ns/kept", "10.9.0.8": "ns/without-key", "fd00:9::7": "ns/kept", "fd00:9::8": "ns/without-key"}
	if err := a.repair(t.Context(), owners); err != nil {
		t.Fatal(err)
	}
	for ip, taken := range map[string]bool{"10.9.0.5": true, "10.9.0.6": false, "10.9.0.7": true, "10.9.0.8": true} {
		if err := a.check(context.Background(), ip); errors.Is(err, errTaken) != taken {
			t.Errorf("%s: %v", ip, err)
		}
	}
	for ip, taken := range map[string]bool{"fd00:9::7": true, "fd00:9::8": true, "fd00:9::9": false} {
		if err := six.check(context.Background(), ip); errors.Is(err, errTaken) != taken {
			t.Errorf("%s: %v", ip, err)
		}
	}
}

func TestServiceNetworkTooSmall(t *testing.T) {
	for _, cidr := range []string{"10.9.0.0/31", "10.0.0.0/11", "fd00::/127", "fd00::/107"} {
		if _, err := newAddresses(nil, netip.MustParsePrefix(cidr), time.Now); err == nil {
			t.Errorf("%s was accepted", cidr)
		}
	}
}
