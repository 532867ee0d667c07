package container

import "strings"

// SwapSysctlSeparators turns the name of a kernel parameter from one of its two forms
// into the other, as sysctl(8): net.ipv4.conf.eth0/1.x is net/ipv4/conf/eth0.1/x.
func SwapSysctlSeparators(name string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}
