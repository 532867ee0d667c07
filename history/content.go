package history

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const (
	// chunkSize keeps a Secret below etcd's request limit of 1.5 MiB.
	chunkSize = 900 << 10
	// maxContent bounds what a revision unpacks to.
	maxContent = 256 << 20
)

// pack turns the objects of a revision into compressed chunks and the digest of
// the whole before compression.
func pack(objects []*unstructured.Unstructured) (chunks [][]byte, digest string, err error) {
	var packed bytes.Buffer
	sum := sha256.New()
	zip := gzip.NewWriter(&packed)
	enc := json.NewEncoder(io.MultiWriter(zip, sum))
	for _, o := range objects {
		if err := enc.Encode(o.Object); err != nil {
			return nil, "", fmt.Errorf("encode %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	if err := zip.Close(); err != nil {
		return nil, "", err
	}
	for b := packed.Bytes(); len(b) > 0; {
		n := min(len(b), chunkSize)
		chunks = append(chunks, b[:n])
		b = b[n:]
	}
	return chunks, "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

// unpack is the reverse of pack. It refuses content that is not what the digest
// says.
func unpack(chunks [][]byte, digest string) ([]*unstructured.Unstructured, error) {
	zip, err := gzip.NewReader(bytes.NewReader(bytes.Join(chunks, nil)))
	if err != nil {
		return nil, fmt.Errorf("the stored objects are damaged: %w", err)
	}
	sum := sha256.New()
	limited := io.LimitReader(zip, maxContent)
	dec := json.NewDecoder(io.TeeReader(limited, sum))
	var out []*unstructured.Unstructured
	for {
		u := &unstructured.Unstructured{}
		err := dec.Decode(u)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("the stored objects are damaged: %w", err)
		}
		out = append(out, u)
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != digest {
		return nil, fmt.Errorf("the stored objects are damaged: their digest is %s, not %s", got, digest)
	}
	return out, nil
}
