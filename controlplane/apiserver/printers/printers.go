// Package printers makes the tables that kubectl prints: for each kind the columns
// that Kubernetes has, computed from the object and the time.
package printers

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apiserver/pkg/registry/rest"
)

// Table is how a kind is printed.
type Table struct {
	// Columns are the headings. A column of priority 1 is shown with -o wide.
	Columns []metav1.TableColumnDefinition
	// Row returns one cell for each column.
	Row func(obj runtime.Object, now time.Time) []any
}

const none = "<none>"

func column(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "string", Description: description}
}

func number(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "integer", Description: description}
}

func wide(name, description string) metav1.TableColumnDefinition {
	c := column(name, description)
	c.Priority = 1
	return c
}

func nameColumn() metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{
		Name: "Name", Type: "string", Format: "name",
		Description: "Name must be unique within a namespace.",
	}
}

func ageColumn() metav1.TableColumnDefinition {
	return column("Age", "Time since the object was created.")
}

// age prints the time since t as kubectl does.
func age(t metav1.Time, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t.Time))
}

// convertor implements rest.TableConvertor for a kind.
type convertor struct {
	table    Table
	now      func() time.Time
	resource schema.GroupResource
}

// NewConvertor returns the TableConvertor of a kind.
func NewConvertor(resource schema.GroupResource, table Table, now func() time.Time) rest.TableConvertor {
	return convertor{table: table, now: now, resource: resource}
}

// ConvertToTable implements rest.TableConvertor.
func (c convertor) ConvertToTable(_ context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	out := &metav1.Table{}
	if opt, ok := options.(*metav1.TableOptions); !ok || !opt.NoHeaders {
		out.ColumnDefinitions = c.table.Columns
	}
	now := c.now()
	add := func(o runtime.Object) error {
		cells := c.table.Row(o, now)
		if len(cells) != len(c.table.Columns) {
			return fmt.Errorf("print %s: %d cells for %d columns", c.resource, len(cells), len(c.table.Columns))
		}
		out.Rows = append(out.Rows, metav1.TableRow{Cells: cells, Object: runtime.RawExtension{Object: o}})
		return nil
	}
	if !meta.IsListType(obj) {
		m, err := meta.CommonAccessor(obj)
		if err != nil {
			return nil, fmt.Errorf("print %s: %w", c.resource, err)
		}
		out.ResourceVersion = m.GetResourceVersion()
		return out, add(obj)
	}
	list, err := meta.ListAccessor(obj)
	if err != nil {
		return nil, fmt.Errorf("print %s: %w", c.resource, err)
	}
	out.ResourceVersion, out.Continue, out.RemainingItemCount = list.GetResourceVersion(), list.GetContinue(), list.GetRemainingItemCount()
	return out, meta.EachListItem(obj, add)
}
