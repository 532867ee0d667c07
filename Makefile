# gitk8s: `make demo` shows it, `make test` proves it. Both work on a fresh Debian
# or Ubuntu machine with Go, as root.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build
# Targets share the build cache and the two cores: one after the other.
.NOTPARALLEL:

# The same for every build and test: another value of one of these would compile
# all dependencies once more.
export CGO_ENABLED := 1
export GOFLAGS := -buildvcs=false -tags=seccomp,netgo,osusergo

VERSION ?= 0.1.0
# The Kubernetes release whose API this is, as in go.mod; clients compare with it.
KUBERNETES := 1.37.2
COMMIT = $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
# The commit's own date, so that one commit makes one binary.
DATE = $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null || echo 1970-01-01T00:00:00Z)
TREE = $(shell test -z "$$(git status --porcelain 2>/dev/null)" && echo clean || echo dirty)
version = $(foreach p,k8s.io/component-base/version k8s.io/client-go/pkg/version,\
	-X $(p).gitVersion=v$(KUBERNETES)+gitk8s-$(VERSION) \
	-X $(p).gitMajor=$(word 1,$(subst ., ,$(KUBERNETES))) -X $(p).gitMinor=$(word 2,$(subst ., ,$(KUBERNETES))) \
	-X $(p).gitCommit=$(COMMIT) -X $(p).gitTreeState=$(TREE) -X $(p).buildDate=$(DATE))
# One static file. Its linker warns that plugins, which kustomize could load and we
# never do, would need a shared libc; newer linkers can be told that we know.
comma := ,
static = -s -w -linkmode external -extldflags "-static $(shell ld --help | grep -q -- --no-warnings && echo -Wl$(comma)--no-warnings)"

SHIM := runtime/container/driver/embedded/gitk8s-shim
PACKAGES = $(shell go list ./... | grep -v '/cmd/')

.PHONY: build deps test-deps test vet unit e2e vm test-cgroup2 test-clock test-kernel test-systemd test-browser demo bench clean help

help: ## Say what can be made
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

deps: ## Install what is missing to build, after saying what and why
	@need=(); \
	want() { echo "missing: $$1, needed $$2"; need+=("$$1"); }; \
	command -v gcc >/dev/null || want gcc "to compile the part of the container runtime that is C"; \
	[ -e "$$(gcc -print-file-name=libc.a 2>/dev/null)" ] || want libc6-dev "to link one static binary"; \
	command -v pkg-config >/dev/null || want pkg-config "to find libseccomp"; \
	compgen -G '/usr/lib/*/libseccomp.a' >/dev/null && [ -e /usr/include/seccomp.h ] || want libseccomp-dev "for the system call filter of containers"; \
	command -v git >/dev/null || want git "to push to the embedded Git server, and for the version"; \
	[ -e /etc/ssl/certs/ca-certificates.crt ] || want ca-certificates "to download Go modules"; \
	if [ $${#need[@]} -gt 0 ] && [ "$$(id -u)" != 0 ]; then \
		echo "have root install it: apt-get install $${need[*]}"; \
		exit 1; \
	fi; \
	if [ $${#need[@]} -gt 0 ]; then \
		echo "installing: $${need[*]}"; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -q && apt-get install -y -q --no-install-recommends "$${need[@]}"; \
	fi

build: deps ## Build bin/gitk8s
	@go build -ldflags='$(static)' -o $(SHIM) ./runtime/container/gitk8s-shim
	@go build -ldflags='$(static) $(version)' -o bin/gitk8s ./cmd/gitk8s

test-deps: deps
	@if ! command -v newuidmap >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "installing: uidmap, with which ordinary users get more than one user id, to test that"; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends uidmap; \
	fi
	@if { [ ! -x /usr/lib/cni/bridge ] || ! command -v iptables >/dev/null; } && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "installing: containernetworking-plugins and iptables, which one of them needs, to test pods' networks made by CNI plugins"; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends containernetworking-plugins iptables; \
	fi
	@if ! command -v curl >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "installing: curl, a client that is not ours, to test the Gateway API with"; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends curl; \
	fi
	@if ! command -v dig >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "installing: bind9-dnsutils, which has dig, to ask the cluster's name server with a client that is not ours"; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends bind9-dnsutils; \
	fi

test: test-deps build vet ## Everything that CI runs
	@status=0; \
	$(MAKE) --no-print-directory unit || status=1; \
	$(MAKE) --no-print-directory e2e || status=1; \
	exit $$status

vet: deps
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not formatted by gofmt: $$unformatted"; exit 1; fi
	go vet ./...

unit: build ## Tests of the packages, with the race detector
	go test -race -timeout 10m $(PACKAGES)

# One test more than there are processors at once: they mostly wait.
e2e: build ## Tests of the whole: bin/gitk8s, real containers, git and kubectl
	GITK8S_BIN=$(CURDIR)/bin/gitk8s go test -timeout 25m -parallel $$(($$(nproc) + 1)) ./cmd/...

# A machine with cgroup v2 alone, emulated: see docs/cgroup2.md.
VM := bin/cgroup2
driver := ./runtime/container/driver

# Modules that the kernel of the machine loads: overlayfs, and what makes the network.
MODULES := overlay veth bridge nf_tables nf_conntrack nf_conntrack_netlink nft_ct nft_nat nft_chain_nat nft_masq \
	nft_fib_ipv4 nft_fib_ipv6 nft_fib_inet nft_numgen nft_hash nft_reject_ipv4 nft_reject_ipv6 nft_reject_inet nft_limit \
	vxlan wireguard sctp

vm: deps
	@if ! command -v qemu-system-x86_64 >/dev/null || ! command -v depmod >/dev/null; then \
		echo "installing: qemu-system-x86 and kmod, to emulate a machine"; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends qemu-system-x86 kmod; \
	fi
	@mkdir -p $(VM)
	@if ! compgen -G '$(VM)/kernel/boot/vmlinuz-*' >/dev/null; then \
		package=$$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ {print $$2; exit}'); \
		echo "downloading: $$package, which is unpacked into $(VM)/kernel and not installed"; \
		(cd $(VM) && apt-get download -q "$$package" && dpkg-deb -x "$$package"_*.deb kernel); \
	fi
	@go build -o $(VM)/cgroup2vm $(driver)/cgroup2vm
	@go build -ldflags='$(static)' -o $(VM)/guest $(driver)/cgroup2vm/guest
	@version=$$(ls $(VM)/kernel/lib/modules); depmod -b $(VM)/kernel $$version; \
		for m in $(MODULES); do modprobe -d $(VM)/kernel -S $$version --show-depends $$m; done | \
		awk '$$1 == "insmod" && !seen[$$2]++ {print $$2}' | paste -sd, >$(VM)/modules

machine := $(VM)/cgroup2vm -kernel $(VM)/kernel/boot/vmlinuz-* -modules "$$(cat $(VM)/modules)" -guest $(VM)/guest

test-cgroup2: vm ## Tests of the container driver under pure cgroup v2, in qemu (about 10 minutes)
	@go build -ldflags='$(static)' -o $(VM)/testbin ./runtime/container/internal/testbin
	@go test -c -ldflags='$(static)' -o $(VM)/driver.test $(driver)
	@$(machine) $(VM)/driver.test $(VM)/testbin

test-clock: vm build ## A cluster in qemu whose clock is put forward and back (about 5 minutes)
	@go build -ldflags='-s -w $(static)' -o $(VM)/server ./cmd/gitk8s/e2e/testdata/server
	@go test -c -ldflags='-s -w $(static)' -o $(VM)/e2e.test ./cmd/gitk8s/e2e
	@$(machine) -args '-test.v -test.run ^TestClock$$' $(VM)/e2e.test $(VM)/server bin/gitk8s

test-kernel: vm build ## Traffic by WireGuard and SCTP, in qemu, whose kernel has both (about 8 minutes)
	@go build -ldflags='-s -w $(static)' -o $(VM)/server ./cmd/gitk8s/e2e/testdata/server
	@go build -ldflags='-s -w $(static)' -o $(VM)/nsenter ./cmd/gitk8s/e2e/testdata/nsenter
	@go test -c -ldflags='-s -w $(static)' -o $(VM)/network.test ./runtime/network
	@go test -c -ldflags='-s -w $(static)' -o $(VM)/e2e.test ./cmd/gitk8s/e2e
	@$(machine) -args '-test.v -test.run ^(TestWireGuard|TestEncrypt$$|TestSCTP$$)' $(VM)/network.test $(VM)/e2e.test $(VM)/server $(VM)/nsenter bin/gitk8s

# A Debian with little more than systemd, and one user with a range of subordinate ids
# whose services run without a session.
$(VM)/root.tar:
	@if ! command -v mmdebstrap >/dev/null; then \
		echo "installing: mmdebstrap, to make a root file system of Debian's packages"; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends mmdebstrap; \
	fi
	@echo "downloading: the packages of a small Debian (40 MB), which becomes $@"
	@mkdir -p $(VM)
	@mmdebstrap --quiet --format=tar --mode=root --variant=essential --include=systemd-sysv,dbus-user-session,libpam-systemd,uidmap \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--customize-hook='chroot "$$1" useradd --create-home --shell /bin/sh tester' \
		--customize-hook='mkdir -p "$$1/var/lib/systemd/linger" && touch "$$1/var/lib/systemd/linger/tester"' \
		bookworm $@.part
	@mv $@.part $@

test-systemd: vm build $(VM)/root.tar ## An ordinary user's cluster in a scope of systemd's, in qemu (about 6 minutes)
	@go build -ldflags='-s -w $(static)' -o $(VM)/server ./cmd/gitk8s/e2e/testdata/server
	@go test -c -ldflags='-s -w $(static)' -o $(VM)/e2e.test ./cmd/gitk8s/e2e
	@$(machine) -root $(VM)/root.tar -args '-test.v -test.run ^TestSystemd$$' $(VM)/e2e.test $(VM)/server bin/gitk8s

# `make test` runs it too where there is a browser, which is too large a download for it.
test-browser: build ## A browser's WebSockets, cookies and HTTP/2 through an Ingress
	@if ! command -v chromium-headless-shell >/dev/null && ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then \
		echo "installing: chromium-headless-shell, a browser without windows (about 160 MB with what it needs)"; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium-headless-shell; \
	fi
	GITK8S_TEST_BROWSER=1 GITK8S_BIN=$(CURDIR)/bin/gitk8s go test -v -timeout 5m -run '^TestBrowser$$' ./cmd/gitk8s/e2e

demo: build ## Show the story; KEEP=1 leaves it running
	@go build -ldflags='-s -w' -o bin/demo-server ./cmd/demo-server
	@go build -o bin/demo ./cmd/demo
	@bin/demo $(if $(filter-out 0,$(KEEP)),--keep)

bench: build ## Measure; the table goes to stdout (about 16 minutes)
	@go build -ldflags='-s -w' -o bin/testserver ./cmd/bench/testserver
	@go build -o bin/bench ./cmd/bench
	@bin/bench

clean: ## Remove what was built
	rm -rf bin $(SHIM)
