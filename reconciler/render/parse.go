package render

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	goyaml "sigs.k8s.io/yaml/goyaml.v3"

	"sigs.k8s.io/yaml"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// Parse reads the documents of one YAML or JSON file. Lists are taken apart.
func Parse(file string, b []byte) ([]Object, error) {
	var objects []Object
	var faults []error
	for _, doc := range split(b) {
		found, err := parseDocument(file, doc)
		if err != nil {
			faults = append(faults, err)
		}
		objects = append(objects, found...)
	}
	return objects, errors.Join(faults...)
}

type document struct {
	text []byte
	line int // of its first line in the file, from 1
}

// split cuts a stream at lines that begin with "---".
func split(b []byte) []document {
	var docs []document
	start, startLine, line := 0, 1, 1
	for i := 0; i < len(b); {
		end := i + 1 + bytes.IndexByte(b[i:], '\n')
		if end == i {
			end = len(b)
		}
		if text := b[i:end]; bytes.HasPrefix(text, []byte("---")) && (len(bytes.TrimSpace(text)) == 3 || text[3] == ' ' || text[3] == '\t') {
			docs = append(docs, document{b[start:i], startLine})
			start, startLine = end, line+1
		}
		i = end
		line++
	}
	return append(docs, document{b[start:], startLine})
}

var yamlLine = regexp.MustCompile(`line (\d+): ?`)

func parseDocument(file string, d document) ([]Object, error) {
	fault := func(err error) error {
		line := d.line
		msg := err.Error()
		if m := yamlLine.FindStringSubmatchIndex(msg); m != nil {
			n, _ := strconv.Atoi(msg[m[2]:m[3]])
			line += n - 1
			msg = msg[:m[0]] + msg[m[1]:]
		}
		for _, prefix := range []string{"error converting YAML to JSON: ", "error unmarshaling JSON: ", "yaml: ", "while decoding JSON: "} {
			msg = strings.TrimPrefix(msg, prefix)
		}
		return &Error{file, line, errors.New(msg)}
	}
	// yaml.YAMLToJSONStrict refuses duplicate keys, and its parser refuses
	// documents whose aliases expand beyond reason.
	j, err := yaml.YAMLToJSONStrict(d.text)
	if err != nil {
		return nil, fault(err)
	}
	if j = bytes.TrimSpace(j); len(j) == 0 || string(j) == "null" {
		return nil, nil
	}
	first := d.line + leading(d.text)
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(j); err != nil {
		switch {
		case runtime.IsMissingKind(err):
			return nil, &Error{file, first, errors.New("the document has no kind; is it a Kubernetes manifest?")}
		case runtime.IsMissingVersion(err):
			return nil, &Error{file, first, errors.New("the document has no apiVersion")}
		}
		return nil, &Error{file, first, err}
	}
	if u.GetAPIVersion() == "" {
		return nil, &Error{file, first, errors.New("the document has no apiVersion")}
	}
	if !u.IsList() {
		return []Object{{Unstructured: u, File: file, Line: first, source: d}}, nil
	}
	var out []Object
	err = u.EachListItem(func(o runtime.Object) error {
		item, ok := o.(*unstructured.Unstructured)
		if !ok || item.GetKind() == "" || item.GetAPIVersion() == "" {
			return &Error{file, first, errors.New("an item of the list has no kind or apiVersion")}
		}
		out = append(out, Object{Unstructured: item, File: file, Line: first})
		return nil
	})
	return out, err
}

// leading counts the blank and comment lines before a document's first key.
func leading(text []byte) int {
	n := 0
	for line := range bytes.Lines(text) {
		t := bytes.TrimSpace(line)
		if len(t) > 0 && t[0] != '#' {
			break
		}
		n++
	}
	return n
}

// known is the scheme of the kinds whose fields are checked without a server.
var known = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			panic(err) // two types under one name: a mistake in this program
		}
	}
	return s
}()

var strictDecoder = serializer.NewCodecFactory(known, serializer.EnableStrict).UniversalDeserializer()

var unknownField = regexp.MustCompile(`unknown field "([^"]+)"`)

// strict decodes the object into its Go type and reports unknown fields and
// values of the wrong type, with the line where they stand.
func strict(o Object) error {
	if !known.Recognizes(o.GroupVersionKind()) {
		return nil
	}
	j, err := o.MarshalJSON()
	if err != nil {
		return &Error{o.File, o.Line, err}
	}
	if _, _, err = strictDecoder.Decode(j, nil, nil); err == nil {
		return nil
	}
	msg := strings.TrimPrefix(err.Error(), "strict decoding error: ")
	line := o.Line
	if m := unknownField.FindStringSubmatch(msg); m != nil && o.source.text != nil {
		if at := lineOf(o.source.text, m[1]); at > 0 {
			line = o.source.line + at - 1
		}
	}
	return &Error{o.File, line, fmt.Errorf("%s: %s", IDOf(o.Unstructured), msg)}
}

// lineOf finds the line of a field such as spec.containers[0].image in a YAML
// document; 0 if it is not there.
func lineOf(text []byte, field string) int {
	var doc goyaml.Node
	if goyaml.Unmarshal(text, &doc) != nil || len(doc.Content) == 0 {
		return 0
	}
	n := doc.Content[0]
	line := 0
	for _, part := range fieldPath(field) {
		switch n.Kind {
		case goyaml.MappingNode:
			next := (*goyaml.Node)(nil)
			for i := 0; i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == part {
					next, line = n.Content[i+1], n.Content[i].Line
				}
			}
			if next == nil {
				return 0
			}
			n = next
		case goyaml.SequenceNode:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(n.Content) {
				return 0
			}
			n = n.Content[i]
			line = n.Line
		default:
			return 0
		}
	}
	return line
}

func fieldPath(field string) []string {
	return strings.FieldsFunc(field, func(r rune) bool { return r == '.' || r == '[' || r == ']' })
}

// clusterWide are the built-in kinds that live in no namespace.
var clusterWide = map[schema.GroupKind]bool{
	{Kind: "Namespace"}:        true,
	{Kind: "Node"}:             true,
	{Kind: "PersistentVolume"}: true,
	{Group: "rbac.authorization.k8s.io", Kind: "ClusterRole"}:                         true,
	{Group: "rbac.authorization.k8s.io", Kind: "ClusterRoleBinding"}:                  true,
	{Group: "storage.k8s.io", Kind: "StorageClass"}:                                   true,
	{Group: "networking.k8s.io", Kind: "IngressClass"}:                                true,
	{Group: "gateway.networking.k8s.io", Kind: "GatewayClass"}:                        true,
	{Group: "scheduling.k8s.io", Kind: "PriorityClass"}:                               true,
	{Group: "certificates.k8s.io", Kind: "CertificateSigningRequest"}:                 true,
	{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}:                 true,
	{Group: "admissionregistration.k8s.io", Kind: "ValidatingWebhookConfiguration"}:   true,
	{Group: "admissionregistration.k8s.io", Kind: "MutatingWebhookConfiguration"}:     true,
	{Group: "admissionregistration.k8s.io", Kind: "ValidatingAdmissionPolicy"}:        true,
	{Group: "admissionregistration.k8s.io", Kind: "ValidatingAdmissionPolicyBinding"}: true,
}

func builtin(gvk schema.GroupVersionKind) (namespaced, known bool) {
	return !clusterWide[gvk.GroupKind()], true
}
