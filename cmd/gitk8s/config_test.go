package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/go-logr/logr"
)

// TestQuiet: a client that goes away is no error, everything else that fails is.
func TestQuiet(t *testing.T) {
	var out bytes.Buffer
	log := logr.FromSlogHandler(quiet{slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn})})
	log.Info("hello")
	log.Error(errors.New("use of closed network connection"), "Error on socket receive")
	log.Error(errors.New("FinishRequest: post-timeout activity - time-elapsed: 2ms"), "Unhandled Error")
	log.Error(errors.New("apiserver was unable to write a JSON response: http: Handler timeout"), "Unhandled Error")
	if out.Len() > 0 {
		t.Errorf("said: %s", &out)
	}
	log.Error(errors.New("no space left on device"), "Unhandled Error")
	if !strings.Contains(out.String(), "no space left on device") {
		t.Errorf("said: %s", &out)
	}
}
