package agent

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// Annotations of static pods and their mirrors, as kubelet writes them.
const (
	annotationSource = "kubernetes.io/config.source"
	annotationHash   = "kubernetes.io/config.hash"

	sourceFile = "file"
)

// isStatic says that a pod comes out of a file of the node's, and runs whatever the API
// says.
func isStatic(pod *v1.Pod) bool {
	return pod.Annotations[annotationSource] == sourceFile && !isMirror(pod)
}

// isMirror says that a pod is what the API has of a static pod.
func isMirror(pod *v1.Pod) bool {
	_, ok := pod.Annotations[v1.MirrorPodAnnotationKey]
	return ok
}

// staticPod makes the pod of a node out of a file's content. complete sets its defaults
// and validates it. The same content gives the same pod, also to another agent.
func staticPod(data []byte, file, node string, complete func(*v1.Pod) error) (*v1.Pod, error) {
	read, err := decodePod(data)
	if err != nil {
		return nil, err
	}
	if read.Name == "" {
		return nil, errors.New("invalid pod: name is needed for the pod")
	}
	pod := &v1.Pod{Spec: read.Spec, Status: v1.PodStatus{Phase: v1.PodPending}}
	// Everything else in the metadata is the system's: an UID out of a file could name
	// any directory.
	pod.Name, pod.Namespace = read.Name+"-"+strings.ToLower(node), read.Namespace
	if pod.Namespace == "" {
		pod.Namespace = v1.NamespaceDefault
	}
	pod.Labels, pod.Annotations = read.Labels, map[string]string{}
	for k, v := range read.Annotations {
		pod.Annotations[k] = v
	}
	delete(pod.Annotations, v1.MirrorPodAnnotationKey)
	pod.Annotations[annotationSource] = sourceFile
	delete(pod.Annotations, annotationHash)
	pod.Spec.NodeName = node
	tolerateAll(pod)
	uid, err := staticUID(pod, file)
	if err != nil {
		return nil, err
	}
	pod.UID, pod.Annotations[annotationHash] = uid, string(uid)
	return pod, complete(pod)
}

// staticUID follows from what the file says and from where it is.
func staticUID(pod *v1.Pod, file string) (types.UID, error) {
	text, err := json.Marshal(pod)
	if err != nil {
		return "", fmt.Errorf("encode pod: %w", err)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q %q ", pod.Spec.NodeName, file)
	h.Write(text)
	return types.UID(hex.EncodeToString(h.Sum(nil)[:16])), nil
}

// tolerateAll keeps the pod where it is while there are problems with its node.
func tolerateAll(pod *v1.Pod) {
	all := v1.Toleration{Operator: v1.TolerationOpExists, Effect: v1.TaintEffectNoExecute}
	for _, t := range pod.Spec.Tolerations {
		if t == all {
			return
		}
	}
	pod.Spec.Tolerations = append(pod.Spec.Tolerations, all)
}

// decodePod reads the one pod that a file holds, as YAML or JSON.
func decodePod(data []byte) (*v1.Pod, error) {
	var docs [][]byte
	for r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data))); ; {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if !json.Valid(doc) {
			if doc, err = yaml.YAMLToJSON(doc); err != nil {
				return nil, err
			}
		}
		if string(doc) != "null" {
			docs = append(docs, doc)
		}
	}
	if len(docs) != 1 {
		return nil, fmt.Errorf("the file holds %d documents, and not one pod", len(docs))
	}
	obj, kind, err := scheme.Codecs.UniversalDeserializer().Decode(docs[0], nil, nil)
	if err != nil {
		return nil, err
	}
	pod, ok := obj.(*v1.Pod)
	if !ok {
		return nil, fmt.Errorf("the file holds a %s of %s, and not a Pod of v1", kind.Kind, kind.GroupVersion())
	}
	return pod, nil
}

// mirrorOf is the pod that the API is to have of a static one.
func mirrorOf(pod *v1.Pod, node types.UID) *v1.Pod {
	yes := true
	m := pod.DeepCopy()
	m.UID, m.Status = "", v1.PodStatus{}
	m.Annotations[v1.MirrorPodAnnotationKey] = m.Annotations[annotationHash]
	m.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: pod.Spec.NodeName, UID: node, Controller: &yes}}
	return m
}

// mirrorVerb is what is to be done about the mirror of a static pod.
type mirrorVerb string

const (
	keepMirror   mirrorVerb = ""
	createMirror mirrorVerb = "create"
	deleteMirror mirrorVerb = "delete"
)

// decideMirror says what to do about the API's mirror of a static pod; both may be nil.
// A mirror cannot be changed into another: it is deleted first. While the pod ends, its
// mirror stays, and tells about it.
func decideMirror(pod *v1.Pod, ending bool, mirror *v1.Pod) mirrorVerb {
	switch {
	case mirror == nil && pod != nil && !ending:
		return createMirror
	case mirror == nil || pod != nil && ending:
		return keepMirror
	case pod == nil || mirror.DeletionTimestamp != nil || mirror.Annotations[v1.MirrorPodAnnotationKey] != pod.Annotations[annotationHash]:
		return deleteMirror
	}
	return keepMirror
}
