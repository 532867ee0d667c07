package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strings"
)

// pullToken is the registry password of workers on other machines: it follows from
// the server's own, and lets nobody push.
func pullToken(token string) string {
	mac := hmac.New(sha256.New, []byte(token))
	mac.Write([]byte("gitk8s registry pull"))
	return hex.EncodeToString(mac.Sum(nil))
}

func basic(token string) string {
	return base64.StdEncoding.EncodeToString([]byte(gitUser + ":" + token))
}

// authorized takes the token as basic credentials or as a bearer.
func authorized(r *http.Request, token string) bool {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		_, given, _ = r.BasicAuth()
	}
	return subtle.ConstantTimeCompare([]byte(given), []byte(token)) == 1
}
