package cronjob

import (
	"fmt"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"
)

// noon is a Friday; the CronJobs of the tests were made then.
var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func newCron(t *testing.T, spec, status string) *batchv1.CronJob {
	t.Helper()
	c := &batchv1.CronJob{}
	if !strings.Contains(spec, "timeZone") {
		spec += ", timeZone: Etc/UTC"
	}
	const text = "metadata: {name: c, namespace: d, uid: cron, creationTimestamp: '2026-05-01T12:00:00Z'}\nspec: {%s}\nstatus: {%s}"
	if err := yaml.UnmarshalStrict(fmt.Appendf(nil, text, spec, status), c); err != nil {
		t.Fatal(err)
	}
	return c
}

// jobOf is a Job "name state", started in the order of the names; one that begins with
// "c-" is the controller's.
func jobOf(text string) *batchv1.Job {
	name, state, _ := strings.Cut(text, " ")
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "d", UID: types.UID(name)}}
	at := metav1.NewTime(noon.Add(time.Duration(name[len(name)-1]) * time.Second))
	job.Status.StartTime = &at
	if strings.HasPrefix(name, "c-") {
		job.Annotations = map[string]string{batchv1.CronJobScheduledTimestampAnnotation: at.Format(time.RFC3339)}
	}
	switch state {
	case "complete":
		job.Status.CompletionTime = &at
		job.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue}}
	case "failed":
		job.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobFailed, Status: corev1.ConditionTrue}}
	}
	return job
}

// summary is a decision as text: "start c-1 at 12:05; replace a; expire b; Reason; wait 1m0s".
func summary(d Decision) string {
	var parts []string
	if d.Start != nil {
		parts = append(parts, "start "+d.Start.Name+" at "+d.Start.Annotations[batchv1.CronJobScheduledTimestampAnnotation])
	}
	for _, list := range []struct {
		verb string
		jobs []*batchv1.Job
	}{{"replace", d.Replaced}, {"expire", d.Expired}} {
		for _, job := range list.jobs {
			parts = append(parts, list.verb+" "+job.Name)
		}
	}
	for _, e := range d.Events {
		parts = append(parts, e.Reason)
	}
	if d.Why != nil {
		parts = append(parts, "skip "+d.Skipped.UTC().Format("15:04")+" "+d.Why.Reason)
	}
	if d.Recheck > 0 {
		parts = append(parts, "wait "+d.Recheck.String())
	}
	return strings.Join(parts, "; ")
}

func TestDecide(t *testing.T) {
	const (
		five   = "schedule: '*/5 * * * *'"
		last   = "lastScheduleTime: '2026-05-01T12:05:00Z', "
		active = last + "active: [{name: a, uid: a}]"
	)
	name := jobName(&batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "c"}}, noon.Add(5*time.Minute))
	for _, c := range []struct {
		name, spec, status string
		jobs               []string
		at                 string
		want               string
	}{
		{name: "not due", spec: five, at: "12:04:30", want: "wait 30s"},
		{name: "not due for long", spec: five, at: "12:00:00", want: "wait 1m0s"},
		{name: "due", spec: five, at: "12:05:00", want: "start " + name + " at 2026-05-01T12:05:00Z; wait 1m0s"},
		{name: "due a while ago", spec: five, at: "12:09:50", want: "start " + name + " at 2026-05-01T12:05:00Z; wait 10s"},
		{name: "in its time zone", spec: "schedule: '5 14 * * *', timeZone: Europe/Vienna", at: "12:05:10", want: "start " + name + " at 2026-05-01T14:05:00+02:00; wait 1m0s"},
		{name: "run already", spec: five, status: last, at: "12:05:10", want: "wait 1m0s"},
		{name: "made, and not written down", spec: five, jobs: []string{name}, at: "12:05:10", want: "wait 1m0s"},
		{name: "suspended", spec: five + ", suspend: true", at: "12:05:10", want: ""},
		{name: "several missed: the newest", spec: five, at: "12:17:00", want: "start c-29627295 at 2026-05-01T12:15:00Z; wait 1m0s"},
		{name: "many missed", spec: "schedule: '* * * * *'", at: "23:59:30", want: "start c-29627999 at 2026-05-01T23:59:00Z; TooManyMissedTimes; wait 30s"},
		{name: "missed within the deadline", spec: "schedule: '* * * * *', startingDeadlineSeconds: 200", at: "23:59:30", want: "start c-29627999 at 2026-05-01T23:59:00Z; wait 30s"},
		{name: "too late", spec: "schedule: '0 13 * * *', startingDeadlineSeconds: 30", at: "13:01:00", want: "skip 13:00 MissSchedule; wait 1m0s"},
		{name: "not too late", spec: "schedule: '0 13 * * *', startingDeadlineSeconds: 90", at: "13:01:00", want: "start c-29627340 at 2026-05-01T13:00:00Z; wait 1m0s"},
		{name: "never", spec: "schedule: '0 0 31 2 *'", at: "13:00:00", want: ""},
		{name: "unreadable", spec: "schedule: 'often'", at: "13:00:00", want: "UnparseableSchedule"},
		{name: "in no zone", spec: five + ", timeZone: Europe/Atlantis", at: "13:00:00", want: "UnknownTimeZone"},

		{name: "side by side", spec: five + ", concurrencyPolicy: Allow", status: active, jobs: []string{"a"}, at: "12:10:00", want: "start c-29627290 at 2026-05-01T12:10:00Z; wait 1m0s"},
		{name: "forbidden", spec: five + ", concurrencyPolicy: Forbid", status: active, jobs: []string{"a"}, at: "12:10:00", want: "skip 12:10 JobAlreadyActive; wait 1m0s"},
		{name: "forbidden until it has ended", spec: five + ", concurrencyPolicy: Forbid", status: active, jobs: []string{"a complete"}, at: "12:11:00", want: "start c-29627290 at 2026-05-01T12:10:00Z; SawCompletedJob; wait 1m0s"},
		{name: "replaced", spec: five + ", concurrencyPolicy: Replace", status: active, jobs: []string{"a", "by-hand"}, at: "12:10:00", want: "start c-29627290 at 2026-05-01T12:10:00Z; replace a; UnexpectedJob; wait 1m0s"},
		{name: "by hand", spec: five, status: last, jobs: []string{"by-hand", "over complete"}, at: "12:06:00", want: "UnexpectedJob; wait 1m0s"},
		{name: "gone", spec: five, status: active, at: "12:06:00", want: "MissingJob; wait 1m0s"},

		{name: "history", spec: five + ", suspend: true, successfulJobsHistoryLimit: 2, failedJobsHistoryLimit: 1",
			jobs: []string{"e complete", "a complete", "c complete", "b failed", "f failed", "d"}, at: "12:01:00", want: "expire a; expire b; UnexpectedJob"},
		{name: "no history", spec: five + ", suspend: true, successfulJobsHistoryLimit: 0", jobs: []string{"a complete", "b failed"}, at: "12:01:00", want: "expire a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			now, err := time.Parse("2006-01-02 15:04:05", "2026-05-01 "+c.at)
			if err != nil {
				t.Fatal(err)
			}
			s := Snapshot{CronJob: newCron(t, c.spec, c.status)}
			for _, j := range c.jobs {
				s.Jobs = append(s.Jobs, jobOf(j))
			}
			if got := summary(Decide(s, now)); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	cron := newCron(t, "schedule: '*/5 * * * *'", "lastSuccessfulTime: '2026-05-01T12:00:00Z', active: [{name: a, uid: a}, {name: b, uid: b}, {name: c, uid: c}]")
	d := Decide(Snapshot{CronJob: cron, Jobs: []*batchv1.Job{jobOf("a"), jobOf("b complete"), jobOf("d failed")}}, noon.Add(time.Minute))
	if len(d.Status.Active) != 1 || d.Status.Active[0].Name != "a" || !d.Status.LastSuccessfulTime.Time.Equal(noon.Add('b'*time.Second)) || d.Status.LastScheduleTime != nil {
		t.Errorf("%+v", d.Status)
	}
	st := Started(d.Status, jobOf("n"), noon)
	if len(st.Active) != 2 || st.Active[1].Name != "n" || !st.LastScheduleTime.Time.Equal(noon) || len(d.Status.Active) != 1 {
		t.Errorf("%+v", st)
	}
	if again := Started(st, jobOf("n"), noon); len(again.Active) != 2 {
		t.Errorf("listed twice: %+v", again.Active)
	}
}

func TestNewJob(t *testing.T) {
	cron := newCron(t, "schedule: '@daily', jobTemplate: {metadata: {labels: {a: b}, annotations: {x: z}}, spec: {completions: 3}}", "")
	job := newJob(cron, noon, time.UTC)
	if job.Labels["a"] != "b" || job.Annotations["x"] != "z" || *job.Spec.Completions != 3 || !metav1.IsControlledBy(job, cron) || job.Name != "c-29627280" {
		t.Errorf("%+v", job)
	}
	if len(cron.Spec.JobTemplate.Annotations) != 1 {
		t.Error("the template was changed")
	}
}

// TestRuns: whatever the schedule, the looks, crashes between making a Job and
// writing it down, and steps of the clock, every run that starts is one of the
// schedule, none starts twice, and the newest that is due is never left out.
func TestRuns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cron := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "c", Namespace: "d", UID: "cron", CreationTimestamp: metav1.NewTime(noon)}}
		zone := rapid.SampledFrom([]string{"Etc/UTC", "Europe/Vienna", "Asia/Kathmandu"}).Draw(t, "zone")
		cron.Spec.TimeZone = &zone
		cron.Spec.Schedule = rapid.SampledFrom([]string{"* * * * *", "*/7 * * * *", "0 * * * *", "30 2 * * *", "0 9 * * MON-FRI", "@monthly"}).Draw(t, "schedule")
		cron.Spec.ConcurrencyPolicy = batchv1.AllowConcurrent
		sched, _, fault := schedule(&cron.Spec)
		if fault != nil {
			t.Fatal(fault)
		}
		made := map[string]*batchv1.Job{}
		now := noon
		for range rapid.IntRange(1, 40).Draw(t, "looks") {
			// The clock goes on, jumps ahead, or is set back.
			now = now.Add(time.Duration(rapid.IntRange(-3600, 20000).Draw(t, "seconds")) * time.Second)
			if rapid.IntRange(0, 9).Draw(t, "month") == 0 {
				now = now.Add(31 * 24 * time.Hour)
			}
			s := Snapshot{CronJob: cron.DeepCopy()}
			for _, job := range made {
				s.Jobs = append(s.Jobs, job)
			}
			d := Decide(s, now)
			if d.Recheck <= 0 || d.Recheck > longestWait {
				t.Fatalf("waits for %s", d.Recheck)
			}
			status := d.Status
			if d.Start != nil {
				if made[d.Start.Name] != nil {
					t.Fatalf("%s starts twice", d.Start.Name)
				}
				if d.At.After(now) || !sched.Next(d.At.Add(-time.Second)).Equal(d.At) {
					t.Fatalf("%s starts at %s, and is due at %s", d.Start.Name, now, d.At)
				}
				if next := sched.Next(d.At); !next.After(now) {
					t.Fatalf("the run of %s starts at %s, that of %s does not", d.At, now, next)
				}
				d.Start.UID = types.UID(d.Start.Name)
				made[d.Start.Name] = d.Start
				status = Started(d.Status, d.Start, d.At)
			}
			if rapid.IntRange(0, 4).Draw(t, "killed") > 0 {
				cron.Status = status
			}
			if after := Decide(Snapshot{CronJob: cron, Jobs: s.Jobs}, now); d.Start == nil && after.Start != nil {
				t.Fatalf("%s is found late", after.Start.Name)
			}
		}
	})
}
