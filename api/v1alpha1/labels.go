package v1alpha1

const (
	// LabelApplication names, on every object that an Application applied, the
	// Application that owns it. Its value is the Application's name; the
	// Application's namespace stands in AnnotationApplicationNamespace.
	LabelApplication = GroupName + "/application"
	// AnnotationApplicationNamespace is the namespace of the owning Application.
	AnnotationApplicationNamespace = GroupName + "/application-namespace"
	// AnnotationCommit is the full SHA of the commit that last changed the object.
	AnnotationCommit = GroupName + "/commit"
	// AnnotationChangeCause is what `kubectl rollout history` prints beside a
	// revision: "<short sha> <subject>" of the commit that last changed the object.
	AnnotationChangeCause = "kubernetes.io/change-cause"
	// AnnotationApplied is a digest of the manifest that was applied last: when it
	// is unchanged, only drift can make the object differ.
	AnnotationApplied = GroupName + "/applied"
	// AnnotationPrune set to "disabled" keeps an object when its manifest leaves
	// the repository.
	AnnotationPrune = GroupName + "/prune"
	// AnnotationReplace set to "enabled" has an object deleted and made anew when a
	// field of it changes that cannot be changed, such as the template of a Job.
	AnnotationReplace = GroupName + "/replace"

	// FieldManager is the server-side apply field manager of the reconciler.
	FieldManager = "gitk8s"

	// SecretTypeRevision is the type of the Secrets that hold a Revision's
	// rendered objects.
	SecretTypeRevision = GroupName + "/revision"
)
