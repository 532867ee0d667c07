package gitsource

import (
	"fmt"
	"sort"
	"strings"

	"github.com/Masterminds/semver/v3"
	"github.com/go-git/go-git/v5/plumbing"
)

// refs are a repository's references: full name to commit (annotated tags peeled).
type refs map[plumbing.ReferenceName]plumbing.Hash

// resolve finds what a ref of a Location means: a branch, a tag, a semver range
// over the tags, in this order. ok is false when it is none of them; it may then
// be a SHA.
func (r refs) resolve(ref string) (name plumbing.ReferenceName, hash plumbing.Hash, ok bool) {
	for _, full := range []plumbing.ReferenceName{
		plumbing.NewBranchReferenceName(ref), plumbing.NewTagReferenceName(ref), plumbing.ReferenceName(ref),
	} {
		if h, found := r[full]; found {
			return full, h, true
		}
	}
	if !strings.ContainsAny(ref, "<>=^~*xX ") {
		return "", plumbing.ZeroHash, false
	}
	constraint, err := semver.NewConstraint(ref)
	if err != nil {
		return "", plumbing.ZeroHash, false
	}
	type tag struct {
		version *semver.Version
		name    plumbing.ReferenceName
	}
	var tags []tag
	for name := range r {
		if !name.IsTag() {
			continue
		}
		if v, err := semver.NewVersion(name.Short()); err == nil && constraint.Check(v) {
			tags = append(tags, tag{v, name})
		}
	}
	if len(tags) == 0 {
		return "", plumbing.ZeroHash, false
	}
	sort.Slice(tags, func(i, j int) bool {
		if c := tags[i].version.Compare(tags[j].version); c != 0 {
			return c > 0
		}
		return tags[i].name < tags[j].name
	})
	return tags[0].name, r[tags[0].name], true
}

// names lists the branches for an error message.
func (r refs) names() string {
	var out []string
	for name := range r {
		if name.IsBranch() {
			out = append(out, name.Short())
		}
	}
	sort.Strings(out)
	if len(out) == 0 {
		return "it has no branches"
	}
	if len(out) > 8 {
		out = append(out[:8], "…")
	}
	return "its branches are " + strings.Join(out, ", ")
}

// isSHA says whether s can be a full or abbreviated commit name.
func isSHA(s string) bool {
	return len(s) >= 4 && len(s) <= 40 && strings.Trim(strings.ToLower(s), "0123456789abcdef") == ""
}

func notFound(ref string, r refs) error {
	return fmt.Errorf("%w: %q is no branch, tag, semver range or commit here; %s", ErrRefNotFound, ref, r.names())
}
