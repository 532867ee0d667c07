package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

func newSync(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sync APP",
		Short: "Look at the repository now and deploy what is new",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.operate(cmd.Context(), args[0], v1alpha1.Operation{Sync: &v1alpha1.SyncOperation{Trigger: "manual", Force: e.v.GetBool("force")}})
		},
	}
	cmd.Flags().Bool("force", false, "deploy also what a hold keeps back, and try a failed commit again")
	operationFlags(cmd)
	return cmd
}

func newRollback(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollback APP",
		Short: "Bring an earlier revision back: every object, every image by digest",
		Long: `Bring an earlier revision back: every object, every ConfigMap, every image by
digest, also when the repository is unreachable and the tags are gone.

Without --to-revision it is the newest successful revision before the deployed
one; asking again goes one further back each time.

The application is then held: the commits rolled back from are not deployed again
by any trigger. A newer commit lifts that by itself, unless --hold is given.`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.operate(cmd.Context(), args[0], v1alpha1.Operation{Rollback: &v1alpha1.RollbackOperation{
				ToRevision: e.v.GetString("to-revision"), Hold: e.v.GetBool("hold"),
			}})
		},
	}
	cmd.Flags().String("to-revision", "", "SHA (4 characters or more), revision number, or HEAD~n along the deployed revisions")
	cmd.Flags().Bool("hold", false, "stay there until `gitk8s resume`, also when newer commits come")
	operationFlags(cmd)
	return cmd
}

func newHold(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hold APP",
		Short: "Deploy nothing by itself until `resume`",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.operate(cmd.Context(), args[0], v1alpha1.Operation{Hold: &v1alpha1.HoldOperation{Reason: e.v.GetString("reason")}})
		},
	}
	cmd.Flags().String("reason", "", "shown in status")
	operationFlags(cmd)
	return cmd
}

func newResume(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "resume APP",
		Short: "Lift a hold and deploy the newest commit",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.operate(cmd.Context(), args[0], v1alpha1.Operation{Resume: &v1alpha1.ResumeOperation{}})
		},
	}
	operationFlags(cmd)
	return cmd
}

func operationFlags(cmd *cobra.Command) {
	cmd.Flags().Bool("wait", true, "wait for the outcome; the exit code tells it")
	cmd.Flags().Duration("timeout", 10*time.Minute, "how long to wait")
	namespaceFlag(cmd)
}

// operate asks the reconciler for an operation and follows it to its end.
func (e *env) operate(ctx context.Context, name string, op v1alpha1.Operation) error {
	d, err := e.dynamic()
	if err != nil {
		return err
	}
	if _, err := e.application(ctx, d, name); err != nil {
		return err
	}
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	op.ID = hex.EncodeToString(id)
	body, err := json.Marshal(map[string]any{"operation": op})
	if err != nil {
		return err
	}
	if _, err := d.Resource(applications).Namespace(e.namespace()).Patch(ctx, name, types.MergePatchType, body, metav1.PatchOptions{}); err != nil {
		return hint(err)
	}
	if !e.v.GetBool("wait") {
		e.say("asked for; `gitk8s status %s` tells how it goes", name)
		return nil
	}
	return e.followOperation(ctx, d, name, op.ID)
}

// followOperation prints what changes in the status until the operation is done.
func (e *env) followOperation(ctx context.Context, d dynamic.Interface, name, id string) error {
	ctx, cancel := context.WithTimeout(ctx, e.v.GetDuration("timeout"))
	defer cancel()
	api := d.Resource(applications).Namespace(e.namespace())
	selector := fields.OneTermEqualSelector("metadata.name", name).String()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			return api.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return api.Watch(ctx, o)
		},
	}
	var result *v1alpha1.OperationResult
	last := ""
	_, err := watchtools.UntilWithSync(ctx, lw, &unstructured.Unstructured{}, nil, func(ev watch.Event) (bool, error) {
		u, ok := ev.Object.(*unstructured.Unstructured)
		if !ok {
			return false, nil
		}
		app, err := decode[application](u)
		if err != nil {
			return false, err
		}
		if ev.Type == watch.Deleted {
			return false, errors.New("the application was deleted meanwhile")
		}
		result = app.Status.LastOperation
		if result == nil || result.ID != id {
			return false, nil
		}
		if line := app.Status.Message; line != "" && line != last && !result.Done {
			e.say("%s", line)
			last = line
		}
		return result.Done, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for %s: %w; it goes on without us, see `gitk8s status %s`", name, err, name)
	}
	if !result.Succeeded {
		return &exitError{1, errors.New(result.Message)}
	}
	e.say("%s", result.Message)
	return nil
}
