package agent

import (
	"bytes"
	"io"
	"os"

	v1 "k8s.io/api/core/v1"
)

const (
	maxTerminationMessage = 4096
	maxFallbackBytes      = 2048
	maxFallbackLines      = 80
)

// terminationMessage is what a run left in its terminationMessagePath or, where
// the policy says so and it failed, the end of its log. See "Determine the Reason
// for Pod Failure" in the Kubernetes documentation.
func (w *worker) terminationMessage(spec *v1.Container, in *instance) string {
	msg := readHead(w.a.messagePath(w.uid, spec.Name, in.Attempt), maxTerminationMessage)
	if msg != "" || in.ExitCode == 0 || spec.TerminationMessagePolicy != v1.TerminationMessageFallbackToLogsOnError {
		return msg
	}
	return logTail(w.a.logPath(w.s.pod, spec.Name, in.Attempt))
}

func readHead(path string, limit int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return ""
	}
	return string(data)
}

// logTail is the text of the last lines of a log file.
func logTail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	// Each line has some 40 bytes of time and tags around its text.
	window := int64(maxFallbackBytes + 64*maxFallbackLines)
	from := max(info.Size()-window, 0)
	data, err := io.ReadAll(io.NewSectionReader(f, from, window))
	if err != nil {
		return ""
	}
	if from > 0 {
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			data = data[i+1:]
		}
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	lines = lines[max(0, len(lines)-maxFallbackLines-1):]
	var text []byte
	for _, line := range lines {
		if l, ok := parseLogLine(line); ok {
			text = append(text, l.text...)
			if !l.partial {
				text = append(text, '\n')
			}
		}
	}
	return string(text[max(0, len(text)-maxFallbackBytes):])
}
