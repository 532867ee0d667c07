//go:build ignore

// This program writes schemas.json: what the CustomResourceDefinitions of the Gateway
// API's module say about its kinds, without the descriptions.
package main

import (
	"bytes"
	"encoding/json"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

func main() {
	log.SetFlags(0)
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	check(err)
	schemas := map[string]any{}
	for _, plural := range []string{"gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants"} {
		file, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "config/crd/standard/gateway.networking.k8s.io_"+plural+".yaml"))
		check(err)
		var crd struct {
			Spec struct {
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct{ OpenAPIV3Schema map[string]any }
				}
			}
		}
		check(yaml.Unmarshal(file, &crd))
		for _, v := range crd.Spec.Versions {
			if v.Name == "v1" {
				schemas[crd.Spec.Names.Kind] = terse(v.Schema.OpenAPIV3Schema)
			}
		}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	check(e.Encode(schemas))
	check(os.WriteFile("schemas.json", b.Bytes(), 0o644))
}

// terse takes the descriptions out of a schema; a property of that name is an object.
func terse(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if _, text := value.(string); text && key == "description" {
				delete(v, key)
				continue
			}
			v[key] = terse(value)
		}
	case []any:
		for i := range v {
			v[i] = terse(v[i])
		}
	}
	return v
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
