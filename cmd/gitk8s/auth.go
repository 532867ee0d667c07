package main

import (
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"strings"
)

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
