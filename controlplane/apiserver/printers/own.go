package printers

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// shortSHA is how much of a commit's name is printed.
const shortSHA = 10

func short(sha string) string {
	if len(sha) > shortSHA {
		return sha[:shortSHA]
	}
	return orNone(sha)
}

// Applications prints Applications.
var Applications = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("Commit", "The commit that is deployed."), column("Phase", "The state in one word."),
		column("Objects", "Deployed objects, ready and all."), column("Held", "Why automatic deploys are held back."), ageColumn(),
		wide("Message", "The state in a sentence."),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		a := obj.(*v1alpha1.Application)
		phase := a.Status.Phase
		if phase == "" {
			phase = v1alpha1.PhasePending
		}
		held := ""
		if a.Status.HeldAt != nil {
			held = string(a.Status.HeldAt.Reason)
		}
		return []any{
			a.Name, short(a.Status.DeployedCommit), string(phase), orNone(a.Status.Objects), held,
			age(a.CreationTimestamp, now), a.Status.Message,
		}
	},
}

// Revisions prints Revisions.
var Revisions = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), number("Revision", "Its number."), column("Commit", "The commit."), column("Subject", "The first line of its message."),
		column("Trigger", "What caused the newest deploy."), column("Outcome", "How the newest deploy ended."), ageColumn(),
		wide("Author", "Who wrote the commit."), wide("Message", "The outcome in a sentence."),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		r := obj.(*v1alpha1.Revision)
		return []any{
			r.Name, r.Spec.Number, short(r.Spec.Commit), r.Spec.Subject, r.Status.Trigger, string(r.Status.Outcome),
			age(r.CreationTimestamp, now), r.Spec.Author, r.Status.Message,
		}
	},
}
