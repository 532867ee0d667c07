package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DeletePods removes every pod's namespace below a PodNetwork's directory without
// the node: for cleaning up after a process that was killed. The links go with the
// namespaces.
func DeletePods(dir string) error {
	pods, err := readRecords(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete pods' networks: %w", err)
	}
	var errs []error
	for _, p := range pods {
		if err := emptyAndDelete(p.NetNS); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.Remove(filepath.Join(dir, p.UID+recordExt)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete pods' networks: %w", err)
	}
	return nil
}

func writeRecord(dir string, p Pod) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, p.UID+recordExt)
	if err := os.WriteFile(file+".tmp", b, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".tmp", file)
}

// readRecords leaves out what a crash of the machine made unreadable; the pods of
// those are gone as well.
func readRecords(dir string) ([]Pod, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"+recordExt))
	if err != nil {
		return nil, err
	}
	var out []Pod
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		uid := strings.TrimSuffix(filepath.Base(f), recordExt)
		pin := filepath.Join(dir, uid+pinExt)
		var r struct {
			Pod
			IP netip.Addr // all that there was before there were several
		}
		err = json.Unmarshal(b, &r)
		p := r.Pod
		if len(p.IPs) == 0 && r.IP.IsValid() {
			p.IPs = []netip.Addr{r.IP}
		}
		if err != nil || p.UID != uid || len(p.IPs) == 0 || slices.ContainsFunc(p.IPs, func(a netip.Addr) bool { return !a.IsValid() }) {
			if err := errors.Join(deleteNetNS(pin), os.Remove(f)); err != nil {
				return nil, err
			}
			continue
		}
		p.NetNS = pin
		out = append(out, p)
	}
	return out, nil
}
