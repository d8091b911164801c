# The two commands that matter: `make demo` and `make test`. Both install into .venv first.

PYTHON ?= python3
PROMPT ?= class TestDict(unittest.TestCase):
CHECKPOINT ?= demo/checkpoint
WORKERS ?= 2
ARGS ?=
SECONDS ?= 60
# Tests that run at the same time.
JOBS ?= 2

BIN := .venv/bin
INSTALLED := .venv/.installed
# Each has its C sources in src/, and the module that is built of them beside it.
NATIVE := moe_model/kernels/native expert_workers/transports/stream/native expert_workers/dispatch/native

.PHONY: help install demo serve test test-long test-slow test-arm test-store test-loads chaos check check-deploy manifests format protos pages bench bench-serve bench-peers \
  bench-service fuzz examples clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## create .venv and install everything, pinned

$(INSTALLED): pyproject.toml client/pyproject.toml constraints.txt setup.py $(wildcard $(NATIVE:%=%/src/*))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $$($(PYTHON) --version) is too old, Python 3.11 or newer is needed (make PYTHON=python3.12 ...)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e client -e '.[dev]'
	@touch $@

demo: install  ## generate text through gRPC with two Ray expert workers
	@$(BIN)/expertmesh demo $(CHECKPOINT) --workers $(WORKERS) --prompt "$$PROMPT" $(ARGS)
demo: export PROMPT := $(PROMPT)

serve: install  ## serve the bundled model on 127.0.0.1:50051
	$(BIN)/expertmesh serve $(CHECKPOINT) --workers $(WORKERS) $(ARGS)

test: install  ## the tests of every change; none needs privileges
	$(BIN)/python -m pytest -n $(JOBS) --time-per-folder $(ARGS)

test-long: install  ## servers that lose workers, end or are overloaded; properties with all their examples
	$(BIN)/python -m pytest -n $(JOBS) --time-per-folder -m '(long or hypothesis) and not slow and not chaos' \
	  --hypothesis-profile=full $(ARGS)

test-store: install  ## checkpoints in object stores, servers on this machine: downloads some 300 MB once
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --target .venv-store --upgrade \
	  s3fs==2026.9.0 gcsfs==2026.10.1 'moto[server]==5.2.5' gcp-storage-emulator==2026.7.19
	PYTHONPATH=.venv-store $(BIN)/python -m pytest -m store tests/moe_model/remote/test_store.py $(ARGS)

test-loads: install  ## guidellm, aiperf, vLLM's client and lm-eval against a server: downloads some 900 MB once
	$(BIN)/python scripts/load_tools.py
	$(BIN)/python -m pytest -m loads tests/scaling/loads $(ARGS)

chaos: install  ## all scenarios of failure; those of networks need root, iproute2 and iptables
	$(BIN)/python -m pytest -m 'not slow' tests/scenarios tests/chaos tests/scaling/hosts tests/integration/test_chaos.py tests/integration/test_machines.py $(ARGS)

test-slow: install  ## the tests that take a minute each
	$(BIN)/python -m pytest -m slow $(ARGS)

test-arm: install  ## kernels for ARM, cross-compiled and emulated: says what to install where that is missing
	$(BIN)/python -m pytest -m arm tests/moe_model/kernels/native/test_arm.py $(ARGS)

check: install  ## format, lint, types, stale stubs, stale pages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/generate_protos.py --check
	$(BIN)/python scripts/option_page.py --check
	$(BIN)/python scripts/model_page.py --check

check-deploy: install  ## the files of deploy/, by tools of their own in .venv-deploy: some 300 MB, downloaded once
	$(BIN)/python scripts/deploy_tools.py
	$(BIN)/python -m pytest -n $(JOBS) -m deploy tests/deploy $(ARGS)

manifests: install  ## write deploy/kubernetes/base of what the Helm chart renders
	$(BIN)/python scripts/deploy_tools.py
	$(BIN)/python scripts/deploy_manifests.py

format: install  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: install  ## regenerate the gRPC stubs
	$(BIN)/python scripts/generate_protos.py

pages: install  ## write docs/options.md and the tables of docs/models.md and docs/fields.md from where their facts are declared
	$(BIN)/python scripts/option_page.py
	$(BIN)/python scripts/model_page.py
	$(BIN)/python -m tests.coordinator.api.field_page

bench: install  ## every bar in one table, kept in benchmarks/results: a quarter of an hour; ARGS="--only grpc"
	$(BIN)/expertmesh bench bars --out benchmarks/results $(ARGS)

bench-serve: install  ## through gRPC: rates, waits, and the share of the engine's rate
	$(BIN)/expertmesh bench serve $(ARGS)

bench-peers: install  ## beside transformers and llama.cpp, in an environment of their own: builds for minutes
	$(BIN)/expertmesh bench peers $(ARGS)

bench-service: install  ## many streams, slow readers, overload, shared prefixes: a few minutes
	@for scenario in streams prefix readers overload; do $(BIN)/python -m benchmarks.service $$scenario $(ARGS); done
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.structured

fuzz: install  ## coverage-guided fuzzing of decoding and validation, for SECONDS; on x86-64
	@mkdir -p .fuzz
	$(BIN)/python -m tests.fuzz.fuzz_request .fuzz -max_total_time=$(SECONDS) -max_len=4096 $(ARGS)

examples:  ## what the Node example in docs/ needs
	npm install --no-save --silent @grpc/grpc-js @grpc/proto-loader

clean:  ## remove what make made
	rm -rf .venv .venv-store .venv-loads .venv-protos .venv-peers .venv-deploy .fuzz node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info client/*.egg-info build client/build dist $(NATIVE:%=%/*.so)
