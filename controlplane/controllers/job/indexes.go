package job

import (
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// indexes is a set of completion indexes, kept as intervals in increasing order
// with gaps between them: a Job may have a hundred thousand.
type indexes []interval

type interval struct{ first, last int }

// parseIndexes reads the form that the status has, "1,3-5,7", up to limit. What
// cannot be read is left out: the API server has checked it.
func parseIndexes(text string, limit int) indexes {
	var out indexes
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		if err != nil {
			continue
		}
		last := first
		if isRange {
			if last, err = strconv.Atoi(to); err != nil {
				continue
			}
		}
		if last = min(last, limit-1); first > last {
			continue
		}
		if n := len(out); n > 0 && out[n-1].last+1 == first {
			out[n-1].last = last
			continue
		}
		out = append(out, interval{first, last})
	}
	return out
}

// String is the form that the status has: three and more in a row are written as a
// range.
func (s indexes) String() string {
	var b strings.Builder
	for _, i := range s {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(i.first))
		switch {
		case i.last == i.first:
		case i.last == i.first+1:
			b.WriteByte(',')
			b.WriteString(strconv.Itoa(i.last))
		default:
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(i.last))
		}
	}
	return b.String()
}

func (s indexes) total() (n int) {
	for _, i := range s {
		n += i.last - i.first + 1
	}
	return n
}

// at is the position of the first interval that does not end before i.
func (s indexes) at(i int) int {
	n, _ := slices.BinarySearchFunc(s, i, func(x interval, i int) int { return x.last - i })
	return n
}

func (s indexes) has(i int) bool {
	n := s.at(i)
	return n < len(s) && s[n].first <= i
}

// with returns the set with one more index; the receiver may share its memory.
func (s indexes) with(i int) indexes {
	if s.has(i) {
		return s
	}
	n := s.at(i)
	before, after := n > 0 && s[n-1].last == i-1, n < len(s) && s[n].first == i+1
	switch {
	case before && after:
		s[n-1].last = s[n].last
		return slices.Delete(s, n, n+1)
	case before:
		s[n-1].last = i
	case after:
		s[n].first = i
	default:
		return slices.Insert(s, n, interval{i, i})
	}
	return s
}

// common counts the indexes that are in both sets.
func (s indexes) common(o indexes) (n int) {
	for i, j := 0, 0; i < len(s) && j < len(o); {
		n += max(min(s[i].last, o[j].last)-max(s[i].first, o[j].first)+1, 0)
		if s[i].last < o[j].last {
			i++
		} else {
			j++
		}
	}
	return n
}

// unknownIndex is that of a pod that has none.
const unknownIndex = -1

// indexOf is the completion index of a pod.
func indexOf(p *corev1.Pod) int {
	i, err := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation])
	if err != nil || i < 0 {
		return unknownIndex
	}
	return i
}
