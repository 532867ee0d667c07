// Package gatewayapi checks the kinds of the Gateway API, and fills in what a manifest
// of them leaves out, by the schemas and rules of their CustomResourceDefinitions (the
// standard channel): what a cluster with those accepts is accepted, and refused in the
// same words.
//
// The rules are compiled when the first object of a kind is seen. All functions may be
// called at the same time.
package gatewayapi

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/common"
)

//go:generate go run schemas.go
//go:embed schemas.json
var schemas []byte

// Kind is one of the kinds: GatewayClass, Gateway, HTTPRoute, GRPCRoute, ReferenceGrant.
type Kind string

// rules are what a kind's definition says.
type rules struct {
	schema  *structural.Structural
	openapi validation.SchemaValidator
}

var kinds = sync.OnceValue(func() map[Kind]*rules {
	var all map[Kind]*apiextensionsv1.JSONSchemaProps
	must(json.Unmarshal(schemas, &all))
	out := map[Kind]*rules{}
	for kind, v1 := range all {
		var hub apiextensions.JSONSchemaProps
		must(apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(v1, &hub, nil))
		r := &rules{}
		var err error
		r.schema, err = structural.NewStructural(&hub)
		must(err)
		r.openapi, _, err = validation.NewSchemaValidator(&hub)
		must(err)
		out[kind] = r
	}
	return out
})

var (
	celMu sync.Mutex
	celOf = map[Kind]*cel.Validator{}
)

// expressions compiles a kind's rules, which takes some ten milliseconds.
func (k Kind) expressions() *cel.Validator {
	celMu.Lock()
	defer celMu.Unlock()
	v, ok := celOf[k]
	if !ok {
		v = cel.NewValidator(kinds()[k].schema, true, celconfig.PerCallLimit)
		celOf[k] = v
	}
	return v
}

// must is for what is embedded in the program, which a test has seen.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("schemas of the Gateway API: %v", err))
	}
}

// Default sets the fields of an object that are missing and have a default.
func (k Kind) Default(obj runtime.Object) {
	content, err := contentOf(obj)
	if err == nil {
		defaulting.Default(content, kinds()[k].schema)
		err = runtime.DefaultUnstructuredConverter.FromUnstructured(content, obj)
	}
	if err != nil { // the object has the kind's Go type, whose fields the defaults fit
		panic(fmt.Sprintf("defaults of a %s: %v", k, err))
	}
}

// Validate checks an object; old is what it was, nil for a new one. As for custom
// resources, what was wrong already and has not changed is let pass.
func (k Kind) Validate(obj, old runtime.Object) field.ErrorList {
	now, err := contentOf(obj)
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	r := kinds()[k]
	var before map[string]any
	var oldObject any
	var options []validation.ValidationOption
	var celOptions []cel.Option
	if old != nil {
		if before, err = contentOf(old); err != nil {
			return field.ErrorList{field.InternalError(nil, err)}
		}
		oldObject = before
		pair := common.NewCorrelatedObject(now, before, &model.Structural{Structural: r.schema})
		options, celOptions = append(options, validation.WithRatcheting(pair)), append(celOptions, cel.WithRatcheting(pair))
	}
	var errs field.ErrorList
	if old == nil {
		errs = validation.ValidateCustomResource(nil, now, r.openapi)
	} else {
		errs = validation.ValidateCustomResourceUpdate(nil, now, before, r.openapi, options...)
	}
	if old == nil || len(listtype.ValidateListSetsAndMaps(nil, r.schema, before)) == 0 {
		errs = append(errs, listtype.ValidateListSetsAndMaps(nil, r.schema, now)...)
	}
	// The expressions are written for objects that fit the schema.
	if v := k.expressions(); v != nil && len(errs) == 0 {
		errs, _ = v.Validate(context.Background(), nil, r.schema, now, oldObject, celconfig.RuntimeCELCostBudget, celOptions...)
	}
	return errs
}

// contentOf is an object as a manifest has it: what is not set is not there.
func contentOf(obj runtime.Object) (map[string]any, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return nil, err
	}
	dropNulls(content)
	if status, ok := content["status"].(map[string]any); ok && len(status) == 0 {
		delete(content, "status") // it has fields that it needs if it is there
	}
	return content, nil
}

func dropNulls(v any) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if value == nil {
				delete(v, key)
				continue
			}
			dropNulls(value)
		}
	case []any:
		for _, value := range v {
			dropNulls(value)
		}
	}
}
