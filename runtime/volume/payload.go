package volume

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// maxPathBytes bounds a path in a volume, as the API does for projected paths.
const maxPathBytes = 4096

// File is one file of a volume.
type File struct {
	Data []byte
	// Mode holds permission bits only.
	Mode fs.FileMode
}

// Payload is the wanted content of a volume: slash-separated relative paths to
// files.
type Payload map[string]File

// Validate refuses paths that are empty, absolute, too long, that leave the
// volume, or that begin with "..", which is how the writer names its own entries.
func (p Payload) Validate() error {
	for name := range p {
		if err := validatePath(name); err != nil {
			return err
		}
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, both := p[dir]; both {
				return fmt.Errorf("path %q is both a file and a directory", dir)
			}
		}
	}
	return nil
}

func validatePath(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("path must not be empty")
	case path.IsAbs(name):
		return fmt.Errorf("path %q must not be absolute", name)
	case len(name) > maxPathBytes:
		return fmt.Errorf("path of %d bytes is longer than %d", len(name), maxPathBytes)
	case strings.ContainsRune(name, 0):
		return fmt.Errorf("path %q has a zero byte", name)
	case path.Clean(name) != name:
		return fmt.Errorf("path %q is not in its shortest form", name)
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return fmt.Errorf("path %q must not have \"..\"", name)
		}
	}
	if strings.HasPrefix(name, "..") {
		return fmt.Errorf("path %q must not begin with \"..\"", name)
	}
	return nil
}

// configMapPayload gives the files of a configMap source. A nil object stands for
// one that does not exist.
func configMapPayload(cm *v1.ConfigMap, name string, items []v1.KeyToPath, mode fs.FileMode, optional bool) (Payload, error) {
	if cm == nil {
		if optional {
			return Payload{}, nil
		}
		return nil, &MissingError{Kind: "ConfigMap", Name: name}
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	for k, v := range cm.BinaryData {
		data[k] = v
	}
	return keysPayload("ConfigMap", name, data, items, mode, optional)
}

// secretPayload gives the files of a secret source. A nil object stands for one
// that does not exist.
func secretPayload(s *v1.Secret, name string, items []v1.KeyToPath, mode fs.FileMode, optional bool) (Payload, error) {
	if s == nil {
		if optional {
			return Payload{}, nil
		}
		return nil, &MissingError{Kind: "Secret", Name: name}
	}
	return keysPayload("Secret", name, s.Data, items, mode, optional)
}

func keysPayload(kind, name string, data map[string][]byte, items []v1.KeyToPath, mode fs.FileMode, optional bool) (Payload, error) {
	out := make(Payload, len(data))
	if items == nil {
		for k, v := range data {
			out[k] = File{Data: v, Mode: mode}
		}
		return out, nil
	}
	for _, item := range items {
		v, ok := data[item.Key]
		if !ok {
			if optional {
				continue
			}
			return nil, &MissingError{Kind: kind, Name: name, Key: item.Key}
		}
		m := mode
		if item.Mode != nil {
			m = fs.FileMode(*item.Mode) & fs.ModePerm
		}
		out[item.Path] = File{Data: v, Mode: m}
	}
	return out, nil
}

// downwardPayload gives the files of a downwardAPI source.
func downwardPayload(pod *v1.Pod, items []v1.DownwardAPIVolumeFile, mode fs.FileMode, allocatable v1.ResourceList) (Payload, error) {
	out := make(Payload, len(items))
	for _, item := range items {
		m := mode
		if item.Mode != nil {
			m = fs.FileMode(*item.Mode) & fs.ModePerm
		}
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = FieldValue(pod, item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			value, err = ResourceValue(pod, item.ResourceFieldRef.ContainerName, item.ResourceFieldRef, allocatable)
		default:
			err = fmt.Errorf("neither fieldRef nor resourceFieldRef is set")
		}
		if err != nil {
			return nil, fmt.Errorf("downwardAPI file %q: %w", item.Path, err)
		}
		out[item.Path] = File{Data: []byte(value), Mode: m}
	}
	return out, nil
}

// modeOr returns the permission bits of m, or 0644, the API's default.
func modeOr(m *int32) fs.FileMode {
	if m == nil {
		return 0o644
	}
	return fs.FileMode(*m) & fs.ModePerm
}

func isTrue(b *bool) bool { return b != nil && *b }

// MissingError says that a volume needs an object, or a key of it, that does not
// exist. Its message is that of Kubernetes.
type MissingError struct {
	Kind, Name, Key string
}

func (e *MissingError) Error() string {
	kind := strings.ToLower(e.Kind)
	if e.Key != "" {
		return fmt.Sprintf("references non-existent %s key: %s", kind, e.Key)
	}
	return fmt.Sprintf("%s %q not found", kind, e.Name)
}
