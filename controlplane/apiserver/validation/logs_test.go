package validation

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestPodLogOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		options string
		want    []string
	}{
		"nothing":          {"{}", nil},
		"all that goes":    {"{tailLines: 0, limitBytes: 1, sinceSeconds: 1, stream: All}", nil},
		"tail":             {"{tailLines: -1}", []string{"tailLines: Invalid value: -1: must be greater than or equal to 0"}},
		"limit":            {"{limitBytes: 0}", []string{"limitBytes: Invalid value: 0: must be greater than 0"}},
		"since":            {"{sinceSeconds: 0}", []string{"sinceSeconds: Invalid value: 0: must be greater than 0"}},
		"since twice":      {"{sinceSeconds: 1, sinceTime: '2026-11-25T00:00:00Z'}", []string{"[]: Forbidden: at most one of"}},
		"stream":           {"{stream: Stderr}", nil},
		"unknown stream":   {"{stream: stdlog}", []string{`stream: Unsupported value: "stdlog"`}},
		"tail of a stream": {"{stream: Stderr, tailLines: 1}", []string{"[]: Forbidden: `tailLines` and specific `stream` are mutually exclusive"}},
	} {
		t.Run(name, func(t *testing.T) { match(t, PodLogOptions(read[corev1.PodLogOptions](t, tt.options)), tt.want...) })
	}
}
