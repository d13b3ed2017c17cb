# Clipper: build, show, test, measure. Every target does its own set-up; on a fresh Debian only Rust, make and root are
# needed.

SHELL = /bin/bash
.SHELLFLAGS = -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

CARGO ?= cargo
# Programs for users are built as `release`; those that are tested are compiled quicker, and check more (Cargo.toml).
PROFILE = release
BIN = $(or $(CARGO_TARGET_DIR),target)/$(PROFILE)
test soak check: PROFILE = checked
export OCI_IMAGE = $(abspath $(BIN))/oci-image
FUZZ_SECONDS ?= 60
RUNS ?= 5
SOAK_SECONDS ?= 1200
# Mbit/s and milliseconds each way.
LINKS ?= 1000/1,300/5,100/20
# Tests of whole programs that run again over the driver fuse, which older kernels have; the default is erofs.
OVER_FUSE := conformance crowd fidelity integrity run:: mapped mixed observe remote removal survival takeover userns
# Those that run again with other releases' containerd: trixie has 1.7, forky 2.1.
OTHER_CONTAINERDS := trixie forky
WITH_OTHERS := cri:: run:: userns

.PHONY: help
help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 27

.PHONY: setup
setup: ## Debian packages that building and testing need (idempotent)
	@scripts/setup

.PHONY: build
build: setup ## the programs: target/release/clipper and clipper-snapshotter
	$(CARGO) build --profile $(PROFILE) --workspace --all-targets

.PHONY: images
images: build ## the small images that the tests use, below .cache/images
	@scripts/images busybox small

.PHONY: containerds
containerds: setup
	@for suite in $(OTHER_CONTAINERDS); do scripts/containerd $$suite; done

.PHONY: bench-images
bench-images: build ## the real images that the benches use: Node.js, Python, PostgreSQL, Java (a quarter of an hour)
	@scripts/images busybox small node-red python postgres java

.PHONY: demo-image
demo-image: build
	@scripts/images node-red

.PHONY: demo
demo: demo-image ## convert a real image, start it before it is downloaded, and compare with containerd's overlayfs
	@$(BIN)/demo

.PHONY: test
test: images containerds check fuzz-smoke ## everything: format, lints, licences, fuzzing in short, unit tests, end to end, conformance
	{ $(CARGO) test --profile $(PROFILE) --workspace --no-fail-fast && \
	  CLIPPER_TEST_DRIVER=fuse $(CARGO) test --profile $(PROFILE) --workspace --no-fail-fast --test e2e --test grpc -- $(OVER_FUSE) && \
	  for suite in $(OTHER_CONTAINERDS); do \
	    CLIPPER_TEST_CONTAINERD=$$suite $(CARGO) test --profile $(PROFILE) --workspace --no-fail-fast --test e2e -- $(WITH_OTHERS); \
	  done; } \
	  2>&1 | scripts/count-tests

.PHONY: soak
soak: images ## a node without rest for SOAK_SECONDS (1200): kills, network faults, evictions, removals; test does 2 minutes of it
	CLIPPER_SOAK_SECONDS=$(SOAK_SECONDS) $(CARGO) test --profile $(PROFILE) --workspace --test soak -- --nocapture

.PHONY: check
check: build ## formatting, clippy, licences and sources
	$(CARGO) fmt --all --check
	$(CARGO) clippy --profile $(PROFILE) --workspace --all-targets -- -D warnings
	scripts/deny

.PHONY: fuzz
fuzz: setup ## every fuzz target for FUZZ_SECONDS (60)
	scripts/fuzz $(FUZZ_SECONDS)

.PHONY: fuzz-smoke
fuzz-smoke: setup
	FUZZ_SEED=1 scripts/fuzz 5

.PHONY: bench
bench: bench-cold-start bench-convert bench-node ## all benches; the results go to benches/RESULTS.md

.PHONY: bench-cold-start
bench-cold-start: bench-images peers ## pull and start to ready of all images over shaped LINKS, RUNS (5) each (two hours)
	$(BIN)/cold-start --runs $(RUNS) --link $(LINKS)

.PHONY: bench-quick
bench-quick: demo-image ## the same of one image over one link with Clipper and overlayfs, twice, into the terminal
	$(BIN)/cold-start --image node-red --runs 2 --dry --systems overlayfs,index-erofs,index-recorded-erofs,full-recorded-erofs

.PHONY: peers
peers: setup ## other snapshotters to compare with, below .cache/tools (ten minutes)
	@scripts/peers

.PHONY: bench-convert
bench-convert: bench-images ## conversion in both modes against gzip, sha256sum and zstd; memory, sizes
	$(BIN)/convert-speed --runs $(RUNS)

.PHONY: bench-node
bench-node: bench-images ## a node at work: warm reads, single reads, fill, memory, many containers (a quarter of an hour)
	$(BIN)/node

.PHONY: clean
clean: ## build output; .cache (images, tools) stays
	$(CARGO) clean
	rm -rf fuzz/target

.PHONY: distclean
distclean: clean ## and .cache as well
	rm -rf .cache
