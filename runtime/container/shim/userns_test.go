package shim

import (
	"strings"
	"testing"

	mobyuser "github.com/moby/sys/user"
)

// TestIDSpace: who is not in the user namespace is refused in words that say so.
func TestIDSpace(t *testing.T) {
	one := []mobyuser.IDMap{{ID: 0, ParentID: 1000, Count: 1}}
	many := []mobyuser.IDMap{{ID: 0, ParentID: 1000, Count: 1}, {ID: 1, ParentID: 100000, Count: 65536}}
	all := []mobyuser.IDMap{{ID: 0, ParentID: 0, Count: 4294967295}}
	for _, c := range []struct {
		name string
		ids  idSpace
		user user
		want string // in the error; empty for none
	}{
		{"root", idSpace{uids: all, gids: all}, user{1 << 30, 1 << 30, []int{1 << 30}}, ""},
		{"a kernel without user namespaces", idSpace{}, user{1000, 1000, []int{7}}, ""},
		{"one id", idSpace{one, one, true}, user{0, 0, nil}, ""},
		{"one id, groups are left out", idSpace{one, one, true}, user{0, 0, []int{7}}, ""},
		{"one id, another user", idSpace{one, one, true}, user{1000, 0, nil}, "runAsUser 1000, and this node runs as an ordinary user who has only one id"},
		{"one id, another group", idSpace{one, one, true}, user{0, 1000, nil}, "runAsGroup 1000"},
		{"several ids", idSpace{many, many, false}, user{65534, 65534, []int{1, 65536}}, ""},
		{"several ids, a user beyond", idSpace{many, many, false}, user{65537, 0, nil}, "runAsUser 65537, and this node runs in a user namespace without that id; the last one in it is 65536"},
		{"several ids, a group beyond", idSpace{many, many, false}, user{0, 0, []int{70000}}, "the supplemental group 70000"},
	} {
		err := c.ids.check(c.user)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
