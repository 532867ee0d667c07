package ingress

import (
	"io"
	"slices"
	"strings"
)

// header is the header of a message: an http.Header, or the fields of a plain one.
type header interface {
	Get(name string) string
	Values(name string) []string
	Set(name, value string)
	Add(name, value string)
	Del(name string)
	Write(w io.Writer) error
}

// fieldList is the header of a plain message, in the order and with the names in which it
// came. Of the few that a message has, one is found sooner by looking at all than in a map.
type fieldList struct{ list []field }

type field struct{ name, value string }

// fieldsKept is how many fields a message may have whose memory is used again.
const fieldsKept = 64

// read takes the lines of a plain head after the first one.
func (f *fieldList) read(lines string) {
	for {
		line, rest, _ := strings.Cut(lines, "\r\n")
		if line == "" {
			return
		}
		lines = rest
		name, value, _ := strings.Cut(line, ":")
		f.list = append(f.list, field{name, strings.Trim(value, " \t")})
	}
}

// forget makes them the fields of no message.
func (f *fieldList) forget() {
	if cap(f.list) > fieldsKept {
		f.list = nil
		return
	}
	clear(f.list)
	f.list = f.list[:0]
}

// is says whether the field has a name, however that is written.
func (f *field) is(name string) bool {
	return len(f.name) == len(name) && strings.EqualFold(f.name, name)
}

// Get implements header.
func (f *fieldList) Get(name string) string {
	for i := range f.list {
		if f.list[i].is(name) {
			return f.list[i].value
		}
	}
	return ""
}

// Values implements header.
func (f *fieldList) Values(name string) (values []string) {
	for i := range f.list {
		if f.list[i].is(name) {
			values = append(values, f.list[i].value)
		}
	}
	return values
}

// Set implements header.
func (f *fieldList) Set(name, value string) {
	f.Del(name)
	f.Add(name, value)
}

// Add implements header.
func (f *fieldList) Add(name, value string) {
	f.list = append(f.list, field{name, oneLine(value)})
}

// Del implements header.
func (f *fieldList) Del(name string) {
	for i := range f.list {
		if f.list[i].is(name) {
			f.list = slices.DeleteFunc(f.list, func(f field) bool { return f.is(name) })
			return
		}
	}
}

// Write implements header.
func (f *fieldList) Write(w io.Writer) error {
	for i := range f.list {
		for _, s := range [...]string{f.list[i].name, ": ", f.list[i].value, "\r\n"} {
			if _, err := io.WriteString(w, s); err != nil {
				return err
			}
		}
	}
	return nil
}

var lineEnds = strings.NewReplacer("\r", " ", "\n", " ")

// oneLine keeps a value from being more than one field, as net/http does.
func oneLine(value string) string {
	if strings.IndexByte(value, '\n') < 0 && strings.IndexByte(value, '\r') < 0 {
		return value
	}
	return lineEnds.Replace(value)
}
