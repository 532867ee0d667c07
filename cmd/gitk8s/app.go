package main

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"text/tabwriter"

	"github.com/go-git/go-git/v5"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/history"
)

func newApp(e *env) *cobra.Command {
	cmd := &cobra.Command{Use: "app", Short: "Create, delete and list applications"}
	cmd.AddCommand(newAppCreate(e), newAppDelete(e), newAppList(e))
	return cmd
}

func newAppCreate(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create APP",
		Short: "Create an application",
		Long: `Create an application. With --repo it follows a repository elsewhere; without,
it is pushed to: ` + "`gitk8s remote APP`" + ` prints where.`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := e.dynamic()
			if err != nil {
				return err
			}
			app := newApplication(e.namespace(), args[0])
			app.Spec.Source = v1alpha1.Source{RepoURL: e.v.GetString("repo"), Ref: e.v.GetString("ref"), Path: e.v.GetString("path")}
			if s := e.v.GetString("secret"); s != "" {
				app.Spec.Source.SecretRef = &v1alpha1.LocalReference{Name: s}
			}
			app.Spec.Sync.Schedule, app.Spec.Sync.TimeZone = e.v.GetString("schedule"), e.v.GetString("time-zone")
			if cmd.Flags().Changed("interval") {
				app.Spec.Sync.Interval = &metav1.Duration{Duration: e.v.GetDuration("interval")}
			}
			if err := createApplication(cmd.Context(), d, app, false); err != nil {
				return hint(err)
			}
			e.say("application %s/%s created", app.Namespace, app.Name)
			return nil
		},
	}
	f := cmd.Flags()
	f.String("repo", "", "URL of the repository to follow (http, https, ssh, file); none for the embedded Git server")
	f.String("ref", "main", "branch, tag, semver range or commit")
	f.String("path", ".", "folder of the manifests")
	f.String("secret", "", "Secret with the repository's credentials")
	f.Duration("interval", 0, "how often the repository is looked at (default 30s; 0 for never)")
	f.String("schedule", "", "cron expression at whose times the repository is looked at")
	f.String("time-zone", "", "time zone of --schedule (default UTC)")
	namespaceFlag(cmd)
	return cmd
}

func newApplication(namespace, name string) *application {
	return &application{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: "Application"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
	}
}

var notInNames = regexp.MustCompile(`[^a-z0-9-]+`)

// applicationFrom makes the first application of `up` from a folder or URL.
func applicationFrom(source string) (*application, error) {
	base := path.Base(strings.TrimSuffix(source, "/"))
	app := newApplication(metav1.NamespaceDefault, "")
	app.Spec.Source.RepoURL = source
	if u, err := url.Parse(source); err != nil || u.Scheme == "" {
		abs, err := filepath.Abs(source)
		if err != nil {
			return nil, err
		}
		repo, err := git.PlainOpenWithOptions(abs, &git.PlainOpenOptions{DetectDotGit: false})
		if err != nil {
			return nil, fmt.Errorf("%s: %w; `git init` makes it a repository", abs, err)
		}
		app.Spec.Source.RepoURL = "file://" + abs
		base = filepath.Base(abs)
		if head, err := repo.Reference("HEAD", false); err == nil && head.Target().IsBranch() {
			app.Spec.Source.Ref = head.Target().Short()
		}
	}
	app.Name = strings.Trim(notInNames.ReplaceAllString(strings.ToLower(strings.TrimSuffix(base, ".git")), "-"), "-")
	if app.Name == "" {
		app.Name = "app"
	}
	return app, nil
}

func newAppDelete(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "delete APP",
		Short: "Delete an application with everything that it deployed",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := e.dynamic()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if _, err := e.application(ctx, d, args[0]); err != nil {
				return err
			}
			if !e.v.GetBool("keep-objects") {
				cluster, owner, err := e.watchedCluster(ctx, args[0])
				if err != nil {
					return err
				}
				defer cluster.stop()
				for _, u := range cluster.Owned(owner) {
					if metav1.GetControllerOf(u) != nil {
						continue
					}
					if err := cluster.Delete(ctx, u); err != nil {
						return err
					}
					e.say("deleted %s %s", u.GetKind(), u.GetName())
				}
			}
			err = d.Resource(applications).Namespace(e.namespace()).Delete(ctx, args[0], metav1.DeleteOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return err
			}
			e.say("application %s/%s deleted", e.namespace(), args[0])
			return nil
		},
	}
	cmd.Flags().Bool("keep-objects", false, "leave what it deployed running")
	namespaceFlag(cmd)
	return cmd
}

func newAppList(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List applications",
		Args:  exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := e.dynamic()
			if err != nil {
				return err
			}
			list, err := d.Resource(applications).List(cmd.Context(), metav1.ListOptions{})
			if err != nil {
				return hint(err)
			}
			apps := make([]*application, 0, len(list.Items))
			for i := range list.Items {
				a, err := decode[application](&list.Items[i])
				if err != nil {
					return err
				}
				apps = append(apps, a)
			}
			return e.print(e.v.GetString("output"), apps, func(w io.Writer) error {
				t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
				fmt.Fprintln(t, "NAMESPACE\tNAME\tPHASE\tCOMMIT\tOBJECTS\tSOURCE")
				for _, a := range apps {
					source := a.Spec.Source.RepoURL
					if source == "" {
						source = "(pushed to)"
					}
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s %s\n", a.Namespace, a.Name, a.Status.Phase, history.Short(a.Status.DeployedCommit), a.Status.Objects, source, a.Spec.Source.Ref)
				}
				return t.Flush()
			})
		},
	}
	outputFlag(cmd)
	return cmd
}

func newRemote(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remote APP",
		Short: "Print the URL to push an application to; the application is made if there is none",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := e.info()
			if err != nil {
				return err
			}
			d, err := e.dynamic()
			if err != nil {
				return err
			}
			app, err := getApplication(cmd.Context(), d, e.namespace(), args[0])
			if err != nil {
				return hint(err)
			}
			if app == nil {
				app = newApplication(e.namespace(), args[0])
				app.Spec.Source.Path = e.v.GetString("path")
				if err := createApplication(cmd.Context(), d, app, true); err != nil {
					return hint(err)
				}
				e.say("application %s/%s created", app.Namespace, app.Name)
			}
			if app.Spec.Source.RepoURL != "" {
				return fmt.Errorf("application %s follows %s; push there", app.Name, app.Spec.Source.RepoURL)
			}
			token, err := os.ReadFile(filepath.Join(info.DataDir, "token"))
			if err != nil {
				return fmt.Errorf("the push credentials are for whoever may read the data directory: %w", err)
			}
			u, err := url.Parse(info.Git)
			if err != nil {
				return err
			}
			u.User = url.UserPassword(gitUser, string(token))
			u.Path = fmt.Sprintf("/%s/%s.git", app.Namespace, app.Name)
			if !e.v.GetBool("add") {
				fmt.Fprintln(e.io.out, u)
				return nil
			}
			return e.addRemote(u.String())
		},
	}
	cmd.Flags().Bool("add", false, "add it to the repository in this folder, as remote \"gitk8s\"")
	cmd.Flags().String("path", ".", "folder of the manifests, if the application is made")
	namespaceFlag(cmd)
	return cmd
}

// addRemote sets the remote "gitk8s" of the repository in the current folder.
func (e *env) addRemote(u string) error {
	repo, err := git.PlainOpenWithOptions(".", &git.PlainOpenOptions{DetectDotGit: true})
	if err != nil {
		return fmt.Errorf("this folder: %w; `git init` makes it a repository", err)
	}
	if err := setRemote(repo, "gitk8s", u); err != nil {
		return err
	}
	e.say("remote \"gitk8s\" added; deploy with: git push gitk8s main")
	return nil
}
