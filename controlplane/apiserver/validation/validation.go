// Package validation checks the objects of each kind as Kubernetes does, with the
// same field paths and reasons, so that tools and people get the message they
// know: spec.template.spec.containers[0].name: Required value.
//
// A function checks an object that already has its defaults; old is nil on create
// and the stored object on update. Metadata is checked by the caller.
package validation

import (
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const immutable = "field is immutable"

// check turns the messages of a checker into errors at a path.
func check(p *field.Path, value string, f func(string) []string) field.ErrorList {
	var errs field.ErrorList
	for _, m := range f(value) {
		errs = append(errs, field.Invalid(p, value, m))
	}
	return errs
}

// requiredName checks a name that must be there and be a DNS label.
func requiredLabel(p *field.Path, value string) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	return check(p, value, utilvalidation.IsDNS1123Label)
}

func requiredSubdomain(p *field.Path, value string) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	return check(p, value, utilvalidation.IsDNS1123Subdomain)
}

// oneOf checks an enumeration; an empty value is required when there is one.
func oneOf[T ~string](p *field.Path, value T, allowed ...T) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	if sets.New(allowed...).Has(value) {
		return nil
	}
	return field.ErrorList{field.NotSupported(p, value, allowed)}
}

func nonNegative[T ~int32 | ~int64](p *field.Path, value T) field.ErrorList {
	if value < 0 {
		return field.ErrorList{field.Invalid(p, int64(value), "must be greater than or equal to 0")}
	}
	return nil
}

func portNumber(p *field.Path, value int32) field.ErrorList {
	var errs field.ErrorList
	for _, m := range utilvalidation.IsValidPortNum(int(value)) {
		errs = append(errs, field.Invalid(p, value, m))
	}
	return errs
}

func portNumberOrName(p *field.Path, value intstr.IntOrString) field.ErrorList {
	if value.Type == intstr.Int {
		var errs field.ErrorList
		for _, m := range utilvalidation.IsValidPortNum(value.IntValue()) {
			errs = append(errs, field.Invalid(p, value.IntValue(), m))
		}
		return errs
	}
	return check(p, value.StrVal, utilvalidation.IsValidPortName)
}

// noBackSteps refuses a path that leaves the folder it is relative to.
func noBackSteps(p *field.Path, value string) field.ErrorList {
	for _, part := range strings.Split(value, "/") {
		if part == ".." {
			return field.ErrorList{field.Invalid(p, value, "must not contain '..'")}
		}
	}
	return nil
}

// relativePath checks a path inside a volume.
func relativePath(p *field.Path, value string) field.ErrorList {
	if strings.HasPrefix(value, "/") {
		return field.ErrorList{field.Invalid(p, value, "must be a relative path")}
	}
	return noBackSteps(p, value)
}

func fileMode(p *field.Path, mode *int32) field.ErrorList {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		return field.ErrorList{field.Invalid(p, *mode, "must be a number between 0 and 0777 (octal), both inclusive")}
	}
	return nil
}

// unique adds an error for a value seen before.
type unique map[string]bool

func (u unique) check(p *field.Path, value string) field.ErrorList {
	if u[value] {
		return field.ErrorList{field.Duplicate(p, value)}
	}
	u[value] = true
	return nil
}
