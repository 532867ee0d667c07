package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Application keeps a part of the cluster equal to a path of a Git repository.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
type Application struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what is wanted.
	Spec ApplicationSpec `json:"spec,omitempty"`
	// Operation is a request to act now, written by the command line and removed
	// by the reconciler when it takes it up; the answer is Status.LastOperation.
	Operation *Operation `json:"operation,omitempty"`
	// Status is what the reconciler last saw and did.
	Status ApplicationStatus `json:"status,omitempty"`
}

// ApplicationList is a list of Applications.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
type ApplicationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Application `json:"items"`
}

// ApplicationSpec is the wanted state of an Application.
type ApplicationSpec struct {
	// Source says where the manifests are.
	Source Source `json:"source,omitempty"`
	// Sync says when the reconciler looks and what it may change.
	Sync Sync `json:"sync,omitempty"`
	// Images says how image references are pinned.
	Images Images `json:"images,omitempty"`
	// Rollout says what happens when a revision does not become Ready.
	Rollout Rollout `json:"rollout,omitempty"`
	// History bounds the Revisions that are kept.
	History HistorySpec `json:"history,omitempty"`
}

// Source locates manifests in a Git repository.
type Source struct {
	// RepoURL is an http(s), ssh or file URL. Empty means the repository of this
	// Application on the embedded Git server.
	RepoURL string `json:"repoURL,omitempty"`
	// Ref is a branch, tag, semver range (">=1.2 <2"), or a full or short SHA.
	// Defaults to main.
	Ref string `json:"ref,omitempty"`
	// Path is the folder within the repository, "." by default.
	Path string `json:"path,omitempty"`
	// SecretRef names a Secret in the Application's namespace with the
	// credentials: username and password (or token), or bearerToken, or
	// ssh-privatekey and known_hosts; and ca.crt, the certificate authority of
	// the remote if it is a private one.
	SecretRef *LocalReference `json:"secretRef,omitempty"`
}

// LocalReference names an object in the same namespace.
type LocalReference struct {
	// Name of the object.
	Name string `json:"name"`
}

// Sync says when and how the cluster is made equal to the repository.
type Sync struct {
	// Interval between looks at the remote, 30s by default; 0 turns polling off.
	Interval *metav1.Duration `json:"interval,omitempty"`
	// Schedule is a five-field cron expression at whose times the remote is
	// looked at, in addition to Interval.
	Schedule string `json:"schedule,omitempty"`
	// TimeZone of Schedule, an IANA name; UTC by default.
	TimeZone string `json:"timeZone,omitempty"`
	// Prune deletes objects whose manifests left the repository. True by default.
	Prune *bool `json:"prune,omitempty"`
	// SelfHeal undoes changes made to applied objects by others. True by default.
	SelfHeal *bool `json:"selfHeal,omitempty"`
	// Timeout for a revision to become Ready, 5m by default.
	Timeout *metav1.Duration `json:"timeout,omitempty"`
	// WebhookSecretRef names a Secret whose key "token" authenticates webhook
	// calls for this Application.
	WebhookSecretRef *LocalReference `json:"webhookSecretRef,omitempty"`
}

// ImageResolution says how image references are pinned in a revision.
type ImageResolution string

const (
	// ResolveDigest pins every tag to the digest it has when the revision is made.
	ResolveDigest ImageResolution = "Digest"
	// ResolveOff leaves references as they are written.
	ResolveOff ImageResolution = "Off"
)

// Images says how image references are treated.
type Images struct {
	// Resolve is Digest (the default) or Off.
	Resolve ImageResolution `json:"resolve,omitempty"`
}

// Rollout says what happens when a revision does not become Ready.
type Rollout struct {
	// AutoRollback returns to the newest successful revision when a new one
	// misses its progress deadline. True by default.
	AutoRollback *bool `json:"autoRollback,omitempty"`
}

// HistorySpec bounds what is remembered.
type HistorySpec struct {
	// Limit is the number of Revisions kept, 50 by default.
	Limit *int32 `json:"limit,omitempty"`
}

// Operation asks the reconciler to act now. Exactly one of its members besides
// ID is set.
type Operation struct {
	// ID is chosen by the asker and echoed in Status.LastOperation.
	ID string `json:"id"`
	// Sync looks at the remote now and deploys what it finds.
	Sync *SyncOperation `json:"sync,omitempty"`
	// Rollback deploys an earlier revision.
	Rollback *RollbackOperation `json:"rollback,omitempty"`
	// Hold stops all automatic deploys until a resume.
	Hold *HoldOperation `json:"hold,omitempty"`
	// Resume lifts a hold.
	Resume *ResumeOperation `json:"resume,omitempty"`
}

// SyncOperation is the request of `gitk8s sync`.
type SyncOperation struct {
	// Trigger says what asked for it: manual, push, webhook.
	Trigger string `json:"trigger,omitempty"`
	// Commit, when set, is the commit to deploy instead of the ref's newest.
	Commit string `json:"commit,omitempty"`
	// Force deploys also what a hold keeps back, and retries a failed commit.
	Force bool `json:"force,omitempty"`
}

// RollbackOperation is the request of `gitk8s rollback`.
type RollbackOperation struct {
	// ToRevision is a SHA of at least 4 characters, a revision number, or HEAD~n
	// along the deployed revisions. Empty walks one successful revision back.
	ToRevision string `json:"toRevision,omitempty"`
	// Hold keeps the application there until resumed, also when newer commits come.
	Hold bool `json:"hold,omitempty"`
}

// HoldOperation is the request of `gitk8s hold`.
type HoldOperation struct {
	// Reason is free text shown in status.
	Reason string `json:"reason,omitempty"`
}

// ResumeOperation is the request of `gitk8s resume`.
type ResumeOperation struct{}

// Phase is the one-word state of an Application.
type Phase string

const (
	// PhasePending: nothing has been deployed yet.
	PhasePending Phase = "Pending"
	// PhaseSyncing: a commit is being rendered, planned and applied.
	PhaseSyncing Phase = "Syncing"
	// PhaseProgressing: objects are applied and not yet all Ready.
	PhaseProgressing Phase = "Progressing"
	// PhaseReady: everything deployed is Ready.
	PhaseReady Phase = "Ready"
	// PhaseDegraded: what is deployed was Ready and no longer is.
	PhaseDegraded Phase = "Degraded"
	// PhaseFailed: the newest commit could not be deployed; what ran before runs on.
	PhaseFailed Phase = "Failed"
)

// Condition types of an Application.
const (
	// ConditionReady is true when the deployed revision is healthy.
	ConditionReady = "Ready"
	// ConditionSynced is true when the newest commit is the deployed one.
	ConditionSynced = "Synced"
	// ConditionHeld is true while automatic deploys are held back.
	ConditionHeld = "Held"
	// ConditionSourceReady is true when the repository could be read.
	ConditionSourceReady = "SourceReady"
)

// ApplicationStatus is what the reconciler last saw and did.
type ApplicationStatus struct {
	// ObservedGeneration is the generation of the spec that was acted on.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// ObservedCommit is the newest commit seen at the ref.
	ObservedCommit string `json:"observedCommit,omitempty"`
	// DeployedCommit is the commit whose objects are applied.
	DeployedCommit string `json:"deployedCommit,omitempty"`
	// ReadyCommit is the deployed commit that became Ready last: what an automatic
	// rollback brings back.
	ReadyCommit string `json:"readyCommit,omitempty"`
	// Revision is the name of the Revision that is deployed.
	Revision string `json:"revision,omitempty"`
	// Phase sums up the conditions in one word.
	Phase Phase `json:"phase,omitempty"`
	// Message explains Phase in a sentence.
	Message string `json:"message,omitempty"`
	// Objects counts the deployed objects, Ready and all, as "3/4".
	Objects string `json:"objects,omitempty"`
	// HeldAt is set while automatic deploys are held back.
	HeldAt *Hold `json:"heldAt,omitempty"`
	// LastSync is the outcome of the newest attempt to deploy.
	LastSync *SyncResult `json:"lastSync,omitempty"`
	// LastOperation answers the newest Operation.
	LastOperation *OperationResult `json:"lastOperation,omitempty"`
	// Conditions in the usual form.
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// HoldReason says who put a hold on.
type HoldReason string

const (
	// HeldByRollback: a person rolled back.
	HeldByRollback HoldReason = "Rollback"
	// HeldByAutoRollback: a rollout failed and was rolled back automatically.
	HeldByAutoRollback HoldReason = "AutoRollback"
	// HeldByUser: `gitk8s hold`, or rollback with --hold; only a resume lifts it.
	HeldByUser HoldReason = "User"
)

// Hold keeps commits from being deployed automatically.
type Hold struct {
	// Commit is the newest commit that is held back: it and its ancestors are not
	// deployed by any trigger.
	Commit string `json:"commit,omitempty"`
	// Time it was put on.
	Time metav1.Time `json:"time,omitempty"`
	// Reason says who put it on. User holds are lifted by a resume alone, the
	// others also by a commit newer than Commit.
	Reason HoldReason `json:"reason,omitempty"`
	// Message explains it in a sentence.
	Message string `json:"message,omitempty"`
}

// Outcome of an attempt to deploy.
type Outcome string

const (
	// OutcomeDeploying: objects are applied, not yet all Ready.
	OutcomeDeploying Outcome = "Deploying"
	// OutcomeSucceeded: everything became Ready.
	OutcomeSucceeded Outcome = "Succeeded"
	// OutcomeFailed: it could not be rendered or applied, or did not become Ready.
	OutcomeFailed Outcome = "Failed"
	// OutcomeRolledBack: it did not become Ready and the one before it was restored.
	OutcomeRolledBack Outcome = "RolledBack"
	// OutcomeSuperseded: a newer commit came before it was Ready.
	OutcomeSuperseded Outcome = "Superseded"
)

// SyncResult is the outcome of one attempt to deploy.
type SyncResult struct {
	// Trigger that caused it: interval, schedule, webhook, push, manual, rollback,
	// selfheal, autorollback.
	Trigger string `json:"trigger,omitempty"`
	// Commit it was about.
	Commit string `json:"commit,omitempty"`
	// StartedAt is when it began.
	StartedAt metav1.Time `json:"startedAt,omitempty"`
	// FinishedAt is when it ended; nil while under way.
	FinishedAt *metav1.Time `json:"finishedAt,omitempty"`
	// Outcome of it.
	Outcome Outcome `json:"outcome,omitempty"`
	// Message says what happened, with the object or file and line.
	Message string `json:"message,omitempty"`
	// Failures in a row for this commit; it sets the back-off.
	Failures int32 `json:"failures,omitempty"`
	// RetryAt is when the next try is due, after a failure that may pass.
	RetryAt *metav1.Time `json:"retryAt,omitempty"`
}

// OperationResult answers an Operation.
type OperationResult struct {
	// ID of the Operation answered.
	ID string `json:"id"`
	// Done is true once the operation has ended.
	Done bool `json:"done,omitempty"`
	// Succeeded is meaningful when Done.
	Succeeded bool `json:"succeeded,omitempty"`
	// Commit that the operation deployed, if any.
	Commit string `json:"commit,omitempty"`
	// Message says what happened.
	Message string `json:"message,omitempty"`
}
