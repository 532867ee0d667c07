package main

import (
	"reflect"
	"strings"
	"syscall"
	"testing"

	mobyuser "github.com/moby/sys/user"
)

// TestPlanIDs: a cluster keeps the ids that it was begun with, or is refused; and what
// an ordinary user goes without is told with what to do.
func TestPlanIDs(t *testing.T) {
	one := oneID(1000, 1000)
	many := one.withSubordinate([]mobyuser.SubID{{SubID: 100000, Count: 65536}}, []mobyuser.SubID{{SubID: 100000, Count: 65536}})
	other := one.withSubordinate([]mobyuser.SubID{{SubID: 300000, Count: 65536}}, []mobyuser.SubID{{SubID: 300000, Count: 65536}})
	for _, c := range []struct {
		name      string
		begun     *idMaps
		available idMaps
		lack      string
		want      idMaps
		tell, err string
	}{
		{"new, one", nil, one, "newuidmap is missing", one, "user 0 alone", ""},
		{"new, many", nil, many, "", many, "the users 0 to 65536 and the groups 0 to 65536", ""},
		{"one, as before", &one, one, "newuidmap is missing", one, "newuidmap is missing", ""},
		{"one, and now there are more", &one, many, "", one, "down --purge", ""},
		{"many, as before", &many, many, "", many, "0 to 65536", ""},
		{"many, and the range has moved", &many, other, "", many, "0 to 65536", ""}, // newuidmap refuses it
		{"many, and now there is one", &many, one, "newuidmap is missing", many, "", "begun with the users 0 to 65536 and the groups 0 to 65536, to whom its files belong, and now newuidmap is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, tell, err := planIDs(c.begun, c.available, c.lack)
			if !reflect.DeepEqual(m, c.want) || !strings.Contains(tell, c.tell) {
				t.Errorf("%+v, %q", m, tell)
			}
			if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
		})
	}
}

func TestSubordinateIDs(t *testing.T) {
	got := oneID(1000, 100).withSubordinate([]mobyuser.SubID{{SubID: 5000, Count: 10}, {SubID: 9000, Count: 5}}, []mobyuser.SubID{{SubID: 7000, Count: 3}})
	want := idMaps{
		Users:  []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}, {ContainerID: 1, HostID: 5000, Size: 10}, {ContainerID: 11, HostID: 9000, Size: 5}},
		Groups: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100, Size: 1}, {ContainerID: 1, HostID: 7000, Size: 3}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	if s := got.String(); s != "the users 0 to 15 and the groups 0 to 3" {
		t.Error(s)
	}
}

// TestIDsAreKept: what a cluster was begun with is read back, and a file that is no
// such thing stops everything.
func TestIDsAreKept(t *testing.T) {
	dir := t.TempDir()
	if m, err := readIDs(dir); m != nil || err != nil {
		t.Errorf("a new one: %v, %v", m, err)
	}
	want := oneID(1000, 1000)
	if err := writeIDs(dir, want); err != nil {
		t.Fatal(err)
	}
	if m, err := readIDs(dir); err != nil || !reflect.DeepEqual(*m, want) {
		t.Errorf("%v, %v", m, err)
	}
	if err := writeIDs(dir, idMaps{}); err != nil {
		t.Fatal(err)
	}
	if m, err := readIDs(dir); err == nil {
		t.Errorf("empty: %v", m)
	}
}
