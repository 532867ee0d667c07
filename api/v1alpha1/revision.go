package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Revision records one commit of an Application that was deployed. It is named
// "<application>-<first 10 characters of the SHA>" and owned by its Application.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
type Revision struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is written once, when the Revision is made.
	Spec RevisionSpec `json:"spec,omitempty"`
	// Status follows the deploys of it.
	Status RevisionStatus `json:"status,omitempty"`
}

// RevisionList is a list of Revisions.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
type RevisionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Revision `json:"items"`
}

// RevisionSpec is what the commit is and what it renders to.
type RevisionSpec struct {
	// Application that was deployed.
	Application string `json:"application"`
	// Number counts the Application's revisions from 1 in the order made.
	Number int64 `json:"number"`
	// Commit is the full SHA.
	Commit string `json:"commit"`
	// Author of the commit, "Name <mail>".
	Author string `json:"author,omitempty"`
	// Subject is the first line of the commit's message.
	Subject string `json:"subject,omitempty"`
	// CommittedAt is the committer's time.
	CommittedAt metav1.Time `json:"committedAt,omitempty"`
	// Objects that the commit renders to.
	Objects []ObjectReference `json:"objects,omitempty"`
	// Images that the objects run, tag to digest.
	Images []ImagePin `json:"images,omitempty"`
	// Content names the Secrets with the rendered objects, in order.
	Content []string `json:"content,omitempty"`
	// ContentDigest is "sha256:…" of the rendered objects before compression.
	ContentDigest string `json:"contentDigest,omitempty"`
}

// ObjectReference names one object of a Revision.
type ObjectReference struct {
	// APIVersion of the object.
	APIVersion string `json:"apiVersion"`
	// Kind of the object.
	Kind string `json:"kind"`
	// Namespace, empty for cluster-wide kinds.
	Namespace string `json:"namespace,omitempty"`
	// Name of the object.
	Name string `json:"name"`
}

// ImagePin is an image reference and what it meant when the revision was made.
type ImagePin struct {
	// Reference as the manifest has it.
	Reference string `json:"reference"`
	// Digest it was pinned to, "sha256:…".
	Digest string `json:"digest"`
}

// RevisionStatus follows the deploys of a Revision.
type RevisionStatus struct {
	// Outcome of the newest deploy of it.
	Outcome Outcome `json:"outcome,omitempty"`
	// Succeeded stays true once any deploy of it became Ready: such a revision is
	// one that a rollback may choose by itself.
	Succeeded bool `json:"succeeded,omitempty"`
	// Trigger of the newest deploy.
	Trigger string `json:"trigger,omitempty"`
	// DeployedAt is when the newest deploy began.
	DeployedAt *metav1.Time `json:"deployedAt,omitempty"`
	// Duration of the newest deploy, from its start until Ready or failed.
	Duration *metav1.Duration `json:"duration,omitempty"`
	// Message explains the outcome.
	Message string `json:"message,omitempty"`
}
