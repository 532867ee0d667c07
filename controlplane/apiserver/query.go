package apiserver

import (
	"fmt"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// queryInto sets the fields of an options struct from query parameters of the
// same JSON name. Unknown parameters are ignored, as kube-apiserver does.
func queryInto(q url.Values, out any) error {
	v := reflect.ValueOf(out).Elem()
	t := v.Type()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		values, ok := q[name]
		if name == "" || !ok || len(values) == 0 {
			continue
		}
		if err := setFromQuery(v.Field(i), values); err != nil {
			return fmt.Errorf("parameter %s: %w", name, err)
		}
	}
	return nil
}

func setFromQuery(v reflect.Value, values []string) error {
	s := values[0]
	if v.Type() == reflect.TypeFor[*metav1.Time]() {
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return err
		}
		v.Set(reflect.ValueOf(&metav1.Time{Time: t}))
		return nil
	}
	switch v.Kind() {
	case reflect.Pointer:
		if s == "" {
			return nil
		}
		v.Set(reflect.New(v.Type().Elem()))
		return setFromQuery(v.Elem(), values)
	case reflect.String:
		v.SetString(s)
	case reflect.Bool:
		// A parameter without a value is true: ?follow
		v.SetBool(s != "false" && s != "0")
	case reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(s, 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is not a number", s)
		}
		v.SetInt(n)
	case reflect.Slice:
		return setSliceFromQuery(v, values)
	}
	return nil
}

func setSliceFromQuery(v reflect.Value, values []string) error {
	out := reflect.MakeSlice(v.Type(), 0, len(values))
	for _, one := range values {
		item := reflect.New(v.Type().Elem()).Elem()
		if err := setFromQuery(item, []string{one}); err != nil {
			return err
		}
		out = reflect.Append(out, item)
	}
	v.Set(out)
	return nil
}
