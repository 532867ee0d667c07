package gitsource

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// maxWebhook bounds the body of a call.
const maxWebhook = 5 << 20

// Webhook answers push events of GitHub, GitLab and Gitea at
// "/hooks/<namespace>/<application>". A call that shows the application's token,
// as an HMAC of the body or in GitLab's header, asks for a look at the remote; a
// forged one can do nothing, and a true one can say nothing but "look".
type Webhook struct {
	// Token returns the secret of an application; ok is false if it has none.
	Token func(r *http.Request, key string) (token []byte, ok bool, err error)
	// Trigger asks for a look at the application's remote now.
	Trigger func(key string)
}

// ServeHTTP implements http.Handler.
func (h *Webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, err := h.serve(w, r)
	var he *httpError
	switch {
	case errors.As(err, &he):
		http.Error(w, he.text, he.code)
	case err != nil:
		http.Error(w, "internal error", http.StatusInternalServerError)
	default:
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, text+"\n")
	}
}

func (h *Webhook) serve(w http.ResponseWriter, r *http.Request) (string, error) {
	if r.Method != http.MethodPost {
		return "", &httpError{http.StatusMethodNotAllowed, "webhooks are sent with POST"}
	}
	ns, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/hooks/"), "/")
	if !validName(ns) || !validName(name) {
		return "", &httpError{http.StatusNotFound, "the path is /hooks/<namespace>/<application>"}
	}
	key := ns + "/" + name
	token, ok, err := h.Token(r, key)
	if err != nil {
		return "", err
	}
	if !ok || len(token) == 0 {
		// The same answer as to a wrong signature: it does not tell what exists.
		return "", &httpError{http.StatusForbidden, "the signature does not match"}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxWebhook))
	if err != nil {
		return "", &httpError{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d MiB", maxWebhook>>20)}
	}
	if !signed(r.Header, body, token) {
		return "", &httpError{http.StatusForbidden, "the signature does not match"}
	}
	if !isPush(r.Header) {
		return "not a push, nothing to do", nil
	}
	var event struct {
		Ref string `json:"ref"`
	}
	if err := json.Unmarshal(body, &event); err != nil {
		return "", &httpError{http.StatusBadRequest, "the body is not JSON; set the content type application/json"}
	}
	h.Trigger(key)
	return "looking at " + key, nil
}

// signed checks the forms in which the three kinds of server prove that they know
// the token.
func signed(h http.Header, body, token []byte) bool {
	mac := hmac.New(sha256.New, token)
	mac.Write(body)
	want := mac.Sum(nil)
	for _, v := range []string{strings.TrimPrefix(h.Get("X-Hub-Signature-256"), "sha256="), h.Get("X-Gitea-Signature")} {
		if got, err := hex.DecodeString(v); err == nil && len(got) > 0 && hmac.Equal(got, want) {
			return true
		}
	}
	return subtle.ConstantTimeCompare([]byte(h.Get("X-Gitlab-Token")), token) == 1
}

func isPush(h http.Header) bool {
	for _, name := range []string{"X-GitHub-Event", "X-Gitea-Event"} {
		if h.Get(name) == "push" {
			return true
		}
	}
	e := h.Get("X-Gitlab-Event")
	return e == "Push Hook" || e == "Tag Push Hook"
}
