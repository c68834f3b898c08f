# Two commands for a start: make build, make demo. `make help` lists the rest.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
ROOT    := $(shell id -u)
TIME    ?= 5s
N       ?= 200
STATES  ?= 200000
SEED    ?= 1
SEEDS   ?= 5000
FROM    ?= 1
REPORT  := $(CURDIR)/out/pauses.txt
UNIT    := ./pkg/... ./cmd/... ./tests/house/... ./tests/histories/... ./tests/fuzz/... ./tests/mutants/... ./tests/manifests/... ./tests/sim/machine/...
export CGO_ENABLED := 0
# Where tests add their figures: explorer.txt, fuzz.txt, histories.txt, model.txt.
export BELAY_REPORT_DIR ?= $(CURDIR)/out

# The cluster of the end-to-end tests, and the tag of Belay's image there.
LAB := $(CURDIR)/tests/e2e/lab/lab
TAG ?= dev
# The control plane of the tests that need no nodes.
GHOSTS := $(CURDIR)/out/lab-ghosts

# The linter's version; it is fetched only by `make lint`, and only where it can be had.
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# Programs that the node role and the tests call, and the Debian packages that have them.
TOOLS    := spin gcc fio mkfs.ext4 mkfs.xfs mkfs.btrfs losetup fsck mount
PACKAGES := spin gcc libc6-dev fio e2fsprogs xfsprogs btrfs-progs util-linux mount

.PHONY: help
help: ## show this list
	@echo 'Belay: replicated block storage that never lets go of a volume before its data is provably safe.'
	@echo
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16
	@echo
	@echo 'Variables: TIME=5s (for each fuzz target), N=200 (kills of crash and soak, devices of histories), SEEDS=5000 and FROM=1 (sim), STATES=200000 and SEED=1 (explore), ARGS (for bench and mutants), VERSION=$(VERSION)'

.PHONY: build
build: ## build bin/belay
	@mkdir -p bin
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/belay ./cmd/belay

.PHONY: deps
deps: ## install the Debian packages that tests and demo call (root, and only what is missing)
	@missing=(); for tool in $(TOOLS); do command -v $$tool >/dev/null || missing+=($$tool); done; \
	if [ $${#missing[@]} -eq 0 ]; then exit 0; fi; \
	if [ $(ROOT) -ne 0 ]; then echo "missing: $${missing[*]}; as root: apt-get install $(PACKAGES)" >&2; exit 1; fi; \
	echo "installing for $${missing[*]}"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq; apt-get install -y -qq --no-install-recommends $(PACKAGES)

.PHONY: unit
unit: ## go vet and the tests that need neither root, cluster nor network
	go vet ./...
	go test $(UNIT)
	go test -count=1 -short ./tests/crash/explorer

.PHONY: test
test: ## all tests: unit, and as root the CSI conformance suite and the short kill tests
ifeq ($(ROOT),0)
	$(MAKE) deps
	$(MAKE) unit lab-short build
	go test -count=1 -timeout 15m -short ./tests/model
	BELAY_BIN=$(CURDIR)/bin/belay go test -count=1 -timeout 15m ./tests/sanity/...
	@mkdir -p out; rm -f $(REPORT) $(BELAY_REPORT_DIR)/histories.txt
	BELAY_BIN=$(CURDIR)/bin/belay BELAY_REPORT=$(REPORT) go test -count=1 -timeout 30m -short ./tests/crash
	@cat $(REPORT)
	@$(MAKE) --no-print-directory summary
else
	$(MAKE) unit lab-short summary
	@echo 'not root: tests/sanity and tests/crash were not run; they mount real filesystems. For tests/model: make model'
endif

.PHONY: lab-short
lab-short:
	$(MAKE) fuzz-short
	$(MAKE) sim SEEDS=5000
	$(MAKE) mutants

.PHONY: summary
summary: ## what the last run of each part of the correctness lab has met
	@for part in model sim explorer mutants fuzz histories; do \
	  if [ -f $(BELAY_REPORT_DIR)/$$part.txt ]; then echo; echo "== $$part"; cat $(BELAY_REPORT_DIR)/$$part.txt; fi; done

.PHONY: model
model: deps ## the protocol in Spin: as it is, exhaustively within bounds; every wrong variant must be found (4 GB, some 15 minutes)
	go test -count=1 -timeout 120m -v ./tests/model

.PHONY: crash
crash: deps build ## the kill tests in full: N kills under load, and in proportion during every call (root)
	BELAY_BIN=$(CURDIR)/bin/belay BELAY_KILLS=$(N) go test -count=1 -timeout 180m -v ./tests/crash

.PHONY: soak
soak: deps build ## engines killed, upgraded and stopped under load, each N times; how long the guest waited (root)
	@mkdir -p out; rm -f $(REPORT)
	BELAY_BIN=$(CURDIR)/bin/belay BELAY_SOAK=$(N) BELAY_REPORT=$(REPORT) go test -count=1 -timeout 24h -v \
	  -run '^(TestSoak|TestStoppedEngine|TestUpgradeToABad|TestEngineCrashDuringLiveUpgrade)' ./tests/crash
	@cat $(REPORT)

.PHONY: histories
histories: deps build ## N devices used by several clients, upgraded, killed and lost; every answer is checked by porcupine (root)
	@mkdir -p $(BELAY_REPORT_DIR)
	BELAY_BIN=$(CURDIR)/bin/belay BELAY_HISTORIES=$(N) go test -count=1 -timeout 24h -v \
	  -run '^TestHistories' ./tests/crash

.PHONY: sim
sim: ## SEEDS seeds of the deterministic simulation, from FROM on; no root needed
	@mkdir -p $(BELAY_REPORT_DIR)
	go test -count=1 -timeout 24h -v ./tests/sim -sim.seeds=$(SEEDS) -sim.from=$(FROM) | grep -v '^=== '

.PHONY: mutants
mutants: ## every wrong variant of the protocol must be found by the simulation within a minute, and the right one must not; no root needed
	@mkdir -p $(BELAY_REPORT_DIR)
	go run ./tests/mutants $(ARGS)

.PHONY: explore
explore: ## STATES crash states of every scenario, and every call of the file system failed in turn; no root needed
	@mkdir -p $(BELAY_REPORT_DIR)
	go test -count=1 -timeout 24h -v -run '^Test(Explore|Fail)' ./tests/crash/explorer -explore.states=$(STATES) -explore.seed=$(SEED) \
	  | grep -v '^=== \|^ *--- PASS'

.PHONY: cluster-up
cluster-up: build ## a real two-node Kubernetes below out/lab, with Belay's image but without Belay (root); LAB_DIR=, TAG=dev
	$(LAB) deps
	$(LAB) build
	$(LAB) image belay $(TAG) $(CURDIR)/bin/belay
	$(LAB) up

.PHONY: e2e-storage
e2e-storage: cluster-up ## the storage tests of Kubernetes on that cluster, against Belay by its manifests (root, some 40 minutes); PROCS=2
	$(LAB) kubectl apply -k tests/e2e/manifests
	for role in deployment/belay-controller daemonset/belay-node; do \
	  $(LAB) kubectl -n belay-system rollout status --timeout=5m $$role; done
	$(LAB) storage-suite
	@cat $(or $(LAB_DIR),out/lab)/storage-suite/storage-suite.txt

.PHONY: e2e
e2e: build ## the end-to-end tests on that Kubernetes, from the manifests' installation to their deletion (root); RUN= chooses
	@mkdir -p $(BELAY_REPORT_DIR)
	BELAY_LAB=$(LAB) go test -count=1 -timeout 90m -v $(if $(RUN),-run '$(RUN)') ./tests/e2e

.PHONY: e2e-short
e2e-short: ## a short form of them in a cluster of their own: a volume's life, an attachment deleted and an engine killed under a live mount (root)
	@if [ -d out/lab/machines ]; then echo 'the cluster is up: make cluster-down first' >&2; exit 1; fi
	$(MAKE) cluster-up
	@trap '$(LAB) down' EXIT; $(MAKE) e2e RUN='^(TestLife|TestAttachmentDeletedUnderLiveMount|TestEngineKilledDuringLiveUpgrade|TestUninstall)$$$$'

.PHONY: e2e-distributed
e2e-distributed: ## the fencing path of an engine that lives on no node, on a control plane of its own without nodes (root, 4 minutes); RUN= chooses
	@mkdir -p $(BELAY_REPORT_DIR) $(GHOSTS); $(LAB) build; rm -rf $(GHOSTS)/bin; cp -al $(CURDIR)/out/lab/bin $(GHOSTS)/bin
	@export LAB_NAME=belayghosts LAB_DIR=$(GHOSTS) BELAY_LAB=$(LAB); trap '$(LAB) down' EXIT; $(LAB) control-plane; \
	  go test -count=1 -timeout 30m -v $(if $(RUN),-run '$(RUN)') ./tests/e2e/distributed

.PHONY: cluster-down
cluster-down: ## the end of that Kubernetes: nothing of it runs or is mounted any more; its binaries and images stay
	$(LAB) down

.PHONY: demo
demo: deps build ## the whole story on this machine, a line a step (root)
	go run ./tests/demo

.PHONY: manifests
manifests: ## render deploy/kubernetes from the chart, which is the source (helm is built from deploy/tools the first time)
	deploy/manifests.sh render

.PHONY: manifests-check
manifests-check: ## deploy/kubernetes is what the chart makes, and every overlay the same as the chart with its values
	deploy/manifests.sh check

.PHONY: bench
bench: deps build ## IOPS, latency and CPU beside raw files and loop, written to out/bench.json (root)
	@mkdir -p out
	go run ./tests/bench $(ARGS)

.PHONY: bench-detach
bench-detach: deps build ## barrier time by what was written and by size of the volume, also out/bench-detach.json (root)
	@mkdir -p out
	go run ./tests/bench detach $(ARGS)

.PHONY: fuzz
fuzz: ## every fuzz target for TIME each (TIME=60s); what is interesting is kept for the next time
	@mkdir -p $(BELAY_REPORT_DIR)
	go run ./tests/fuzz -libraries -time $(TIME) -cache "$$(go env GOCACHE)/fuzz"

.PHONY: fuzz-short
fuzz-short:
	@mkdir -p $(BELAY_REPORT_DIR); rm -f $(BELAY_REPORT_DIR)/fuzz.txt
	go run ./tests/fuzz -time 1s

.PHONY: lint
lint: ## go vet, gofmt, the house rules, and golangci-lint where it can be had
	go vet ./...
	@unformatted=$$(gofmt -l cmd pkg tests); if [ -n "$$unformatted" ]; then echo "gofmt: $$unformatted" >&2; exit 1; fi
	go test -count=1 ./tests/house/...
	@if go run $(GOLANGCI) --version >/dev/null 2>&1; then go run $(GOLANGCI) run ./...; else echo 'golangci-lint cannot be had here: skipped'; fi

.PHONY: clean
clean: ## remove what the other targets made
	@if [ -d out/lab/machines ]; then echo 'the cluster is up: make cluster-down first' >&2; exit 1; fi
	rm -rf bin out
