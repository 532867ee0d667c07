package agent

import (
	"bytes"
)

type logLine struct {
	partial bool
	text    []byte
}

func parseLogLine(line []byte) (logLine, bool) {
	f := bytes.SplitN(line, []byte(" "), 4)
	if len(f) < 4 {
		return logLine{}, false
	}
	return logLine{partial: string(f[2]) == "P", text: bytes.TrimSuffix(f[3], []byte("\n"))}, true
}
