SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VERSION := $(shell git describe --always --dirty --tags 2>/dev/null || echo devel)
LDFLAGS := -s -w -X phoenix.internal/agent.version=$(VERSION) -X phoenix.internal/controller.version=$(VERSION) \
           -X phoenix.internal/cli.Version=$(VERSION)
TOOL    := go tool -modfile=tools/go.mod
FLEET   ?= deploy/config/phoenix_lxc_configs.sample.json
FUZZTIME ?= 10s
export CGO_ENABLED ?= 0
# NVIDIA's header marks functions as deprecated, of which go-nvml calls every one.
export CGO_CFLAGS ?= -O2 -g -Wno-deprecated-declarations

.PHONY: help build demo demo-down test lint generate generated breaking baseline fuzz bench bench-readme fmt clean deps

## help: what can be made (the default)
help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST) | awk -F': ' '{printf "  make %-12s %s\n", $$1, $$2}'

## build: bin/phoenix-agent, bin/phoenix-controller, bin/phoenix-cli; bin/phoenix-nvml if there is a C compiler
build:
	@mkdir -p bin
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./agent/cmd/phoenix-agent ./controller/cmd/phoenix-controller ./cli/cmd/phoenix-cli
	@if command -v $(firstword $(shell go env CC)) >/dev/null; then set -x; \
	  CGO_ENABLED=1 go build -trimpath -ldflags '-s -w' -o bin/ ./agent/cmd/phoenix-nvml; \
	else rm -f bin/phoenix-nvml; echo "bin/phoenix-nvml is left out, as there is no C compiler: agents go without NVML"; fi

## demo: two pretend Proxmox hosts on real LXC, a container for each entry of FLEET, applied and verified (as root)
demo: deps build bin/phoenix-sandbox
	bin/phoenix-sandbox demo --fleet $(FLEET)

## demo-down: everything that demo made is gone again
demo-down: bin/phoenix-sandbox
	bin/phoenix-sandbox down

.PHONY: bin/phoenix-sandbox
bin/phoenix-sandbox:
	@mkdir -p bin
	go build -trimpath -o bin/ ./deploy/sandbox/cmd/...

## test: all tests, under the race detector (as root those on real LXC too)
test: deps
	@CGO_ENABLED=1 go test -race -timeout 9m $(TESTFLAGS) ./...

## lint: buf, gofmt, vet, staticcheck
lint:
	$(TOOL) buf lint
	$(TOOL) buf format --diff --exit-code
	@test -z "$$(gofmt -l $$(git ls-files '*.go' | grep -v '^gen/'))" || { gofmt -l $$(git ls-files '*.go' | grep -v '^gen/'); exit 1; }
	go vet ./...
	$(TOOL) staticcheck ./...
	@if command -v $(firstword $(shell go env CC)) >/dev/null; then set -x; \
	  CGO_ENABLED=1 go vet ./agent/cmd/phoenix-nvml; CGO_ENABLED=1 $(TOOL) staticcheck ./agent/cmd/phoenix-nvml; fi

## generate: gen/ from proto/
generate:
	$(TOOL) buf generate

## generated: fail if gen/ is not what proto/ gives
generated: generate
	@git diff --exit-code --stat -- gen || { echo "gen/ is stale: run make generate and commit"; exit 1; }
	@test -z "$$(git status --porcelain -- gen)" || { git status --porcelain -- gen; echo "gen/ holds files that proto/ does not give, or lacks some: run make generate and commit"; exit 1; }

## breaking: fail if proto/ breaks clients of the contract in proto/baseline.binpb
breaking:
	$(TOOL) buf breaking --against proto/baseline.binpb

# After a release: what proto/ says now is the contract that must not break.
baseline:
	$(TOOL) buf build --exclude-source-info -o proto/baseline.binpb

## fuzz: every fuzz target for FUZZTIME
fuzz:
	@for pkg in $$(go list ./...); do \
	  for target in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$target"; .ci/fuzz $$pkg $$target $(FUZZTIME); \
	  done; \
	done

## bench: the benchmarks of all packages, then Phoenix against LXC, bash, xargs and Ansible (minutes; as root)
bench: deps
	go test -run '^$$' -bench . $$(git ls-files '*_test.go' | xargs grep -l '^func Benchmark' | xargs -n 1 dirname | sort -u | sed 's,^,./,')
	$(COMPARE) $(BENCHFLAGS)

## bench-readme: that comparison, with its table written into README.md
bench-readme: deps
	$(COMPARE) -readme ../../README.md $(BENCHFLAGS)

# BENCHFLAGS="-containers 1,16,100 -rounds 20 -profiles /tmp/profiles", for example
COMPARE = cd deploy/bench && go test -count=1 -timeout 30m -run '^TestBench$$' -full

## fmt: gofmt and buf format
fmt:
	gofmt -w $$(git ls-files '*.go' | grep -v '^gen/')
	$(TOOL) buf format -w

## clean: remove what was built
clean:
	rm -rf bin

# What the tests and the demo need beyond Go; as another user than root, or where apt-get is missing, the tests on real
# LXC are skipped and say so.
deps:
	@deploy/install-deps.sh
