package registry

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// Credentials are registry credentials in the order in which they are tried. They
// are an authn.Keychain.
type Credentials []credential

type credential struct {
	registry string // host[:port][/path]
	config   authn.AuthConfig
}

// Resolve implements authn.Keychain: the first credentials whose registry is that
// of the target and whose path, if any, is a prefix of its repository.
func (c Credentials) Resolve(target authn.Resource) (authn.Authenticator, error) {
	for _, a := range c {
		if a.registry == target.RegistryStr() || target.String() == a.registry || strings.HasPrefix(target.String(), a.registry+"/") {
			return authn.FromConfig(a.config), nil
		}
	}
	return authn.Anonymous, nil
}

// ParseDockerConfig reads a docker config file: what a Secret of type
// kubernetes.io/dockerconfigjson holds.
func ParseDockerConfig(data []byte) (Credentials, error) {
	var file struct {
		Auths json.RawMessage `json:"auths"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, errors.New("not a docker config file")
	}
	if file.Auths == nil {
		return nil, nil
	}
	return ParseDockercfg(file.Auths)
}

// ParseDockercfg reads the older form: what a Secret of type
// kubernetes.io/dockercfg holds.
func ParseDockercfg(data []byte) (Credentials, error) {
	var m map[string]struct {
		Username      string `json:"username"`
		Password      string `json:"password"`
		Auth          string `json:"auth"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	}
	// The error is not passed on: it could quote a password.
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, errors.New("not a docker config file")
	}
	var out Credentials
	for host, e := range m {
		if e.Auth != "" && e.Username == "" {
			raw, err := base64.StdEncoding.DecodeString(e.Auth)
			if err != nil {
				return nil, fmt.Errorf("auth of registry %s is not base64", host)
			}
			e.Username, e.Password, _ = strings.Cut(string(raw), ":")
		}
		out = append(out, credential{credentialKey(host), authn.AuthConfig{
			Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken,
		}})
	}
	// The most specific entry is tried first.
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i].registry, out[j].registry
		return len(a) > len(b) || len(a) == len(b) && a < b
	})
	return out, nil
}

// credentialKey strips what docker puts around a registry's name.
func credentialKey(host string) string {
	host = strings.TrimPrefix(strings.TrimPrefix(host, "https://"), "http://")
	host = strings.TrimSuffix(host, "/")
	host = strings.TrimSuffix(strings.TrimSuffix(host, "/v1"), "/v2")
	if host == "docker.io" || host == "registry-1.docker.io" {
		return name.DefaultRegistry
	}
	return host
}
