// Package history keeps what an Application has deployed: one Revision a commit,
// with the rendered objects beside it, and decides which revision a rollback
// means. In: Revisions as the API has them. The choosing is pure; Store does the
// reading and writing.
package history

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// MinSHA is how many characters of a SHA are needed to name a revision.
const MinSHA = 4

// Errors of Choose; ask with errors.Is.
var (
	// ErrNoRevision: nothing matches.
	ErrNoRevision = errors.New("no such revision")
	// ErrAmbiguous: several revisions match.
	ErrAmbiguous = errors.New("ambiguous revision")
)

// Name is the name of the Revision of an application's commit.
func Name(application, commit string) string {
	return application + "-" + Short(commit)
}

// Short is the first 10 characters of a SHA, as used in names and messages.
func Short(sha string) string {
	return sha[:min(len(sha), 10)]
}

// Sort orders revisions by number, the newest first.
func Sort(revisions []*v1alpha1.Revision) {
	slices.SortFunc(revisions, func(a, b *v1alpha1.Revision) int {
		return cmp.Or(cmp.Compare(b.Spec.Number, a.Spec.Number), cmp.Compare(a.Name, b.Name))
	})
}

// Choose finds the revision that a rollback from the deployed commit means by
// wanted: a SHA of at least MinSHA characters, a revision number, "HEAD~n" counted
// along the deployed revisions, or "" for the newest successful revision before
// the deployed one. Since that is counted from what is deployed, asking again goes
// one further back each time and never flips between two.
func Choose(wanted string, revisions []*v1alpha1.Revision, deployed string) (*v1alpha1.Revision, error) {
	sorted := slices.Clone(revisions)
	Sort(sorted)
	if len(sorted) == 0 {
		return nil, fmt.Errorf("%w: nothing has been deployed yet", ErrNoRevision)
	}
	switch {
	case wanted == "":
		return previous(sorted, deployed)
	case wanted == "HEAD" || strings.HasPrefix(wanted, "HEAD~") || strings.HasPrefix(wanted, "HEAD^"):
		return ancestor(wanted, sorted, deployed)
	}
	var matches []*v1alpha1.Revision
	sha := strings.ToLower(wanted)
	if len(sha) >= MinSHA && isHex(sha) {
		for _, r := range sorted {
			if strings.HasPrefix(r.Spec.Commit, sha) {
				matches = append(matches, r)
			}
		}
	}
	// Four digits may be a number or the beginning of a SHA: a number that exists
	// counts too.
	if n, err := strconv.ParseInt(wanted, 10, 64); err == nil {
		for _, r := range sorted {
			if r.Spec.Number == n && !slices.Contains(matches, r) {
				matches = append(matches, r)
			}
		}
	}
	switch len(matches) {
	case 1:
		return matches[0], nil
	case 0:
		if isHex(sha) && len(sha) < MinSHA && !isNumber(wanted) {
			return nil, fmt.Errorf("%w: %q is too short, give at least %d characters of the SHA", ErrNoRevision, wanted, MinSHA)
		}
		return nil, fmt.Errorf("%w: %q is none of the %d revisions kept; see `gitk8s history`", ErrNoRevision, wanted, len(sorted))
	}
	var names []string
	for _, r := range matches {
		names = append(names, fmt.Sprintf("%d (%s)", r.Spec.Number, Short(r.Spec.Commit)))
	}
	return nil, fmt.Errorf("%w: %q could be %s", ErrAmbiguous, wanted, strings.Join(names, " or "))
}

func previous(sorted []*v1alpha1.Revision, deployed string) (*v1alpha1.Revision, error) {
	at := slices.IndexFunc(sorted, func(r *v1alpha1.Revision) bool { return r.Spec.Commit == deployed })
	for _, r := range sorted[at+1:] { // at is -1 when the deployed one is not kept: then any will do
		if r.Status.Succeeded {
			return r, nil
		}
	}
	return nil, fmt.Errorf("%w: there is no successful revision before the deployed one", ErrNoRevision)
}

// Fallback finds the revision to bring back when the deploy of failed did: the one
// that ran before it, which after a rollback is not the one numbered before it, or
// else the newest successful one before it.
func Fallback(revisions []*v1alpha1.Revision, failed, ready string) (*v1alpha1.Revision, error) {
	for _, r := range revisions {
		if r.Spec.Commit == ready && ready != failed && r.Status.Succeeded {
			return r, nil
		}
	}
	return Choose("", revisions, failed)
}

// ancestor counts n steps back from the deployed revision along those that were
// deployed, whatever became of them.
func ancestor(wanted string, sorted []*v1alpha1.Revision, deployed string) (*v1alpha1.Revision, error) {
	rest := strings.TrimPrefix(wanted, "HEAD")
	n := 0
	switch {
	case rest == "":
	case strings.Trim(rest, "^") == "":
		n = len(rest)
	case rest == "~":
		n = 1
	default:
		var err error
		if n, err = strconv.Atoi(strings.TrimPrefix(rest, "~")); err != nil || n < 0 {
			return nil, fmt.Errorf("%w: %q is not HEAD~n", ErrNoRevision, wanted)
		}
	}
	at := slices.IndexFunc(sorted, func(r *v1alpha1.Revision) bool { return r.Spec.Commit == deployed })
	if at < 0 {
		return nil, fmt.Errorf("%w: the deployed commit is not among the revisions kept", ErrNoRevision)
	}
	if n >= len(sorted)-at {
		return nil, fmt.Errorf("%w: %q goes back further than the %d revisions before the deployed one", ErrNoRevision, wanted, len(sorted)-at-1)
	}
	return sorted[at+n], nil
}

func isHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}

func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// NextNumber is the number of the next revision.
func NextNumber(revisions []*v1alpha1.Revision) (n int64) {
	for _, r := range revisions {
		n = max(n, r.Spec.Number)
	}
	return n + 1
}

// Expired are the revisions beyond limit, the oldest first. Those of the commits to
// keep and the newest successful one are spared.
func Expired(revisions []*v1alpha1.Revision, limit int, keep ...string) []*v1alpha1.Revision {
	sorted := slices.Clone(revisions)
	Sort(sorted)
	spared := false
	var out []*v1alpha1.Revision
	for i, r := range sorted {
		kept := i < limit || slices.Contains(keep, r.Spec.Commit)
		if r.Status.Succeeded && !spared {
			spared, kept = true, true
		}
		if !kept {
			out = append(out, r)
		}
	}
	slices.Reverse(out)
	return out
}
