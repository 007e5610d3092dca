# Two commands matter: `make demo` and `make test`. Each sets up what it needs (`make setup`) on a fresh Debian 12.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?=
JOBS ?= 2

VENV := .venv
PY := $(VENV)/bin/python
BIN := $(abspath $(VENV)/bin)
READY := $(VENV)/.ready
EXTRAS := onnx,tune,report,test,dev
# Each test process runs its own worker; threads inside it would only fight over the cores.
ONE_THREAD := OMP_NUM_THREADS=1 TVM_NUM_THREADS=1

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

.PHONY: setup
setup: system $(READY) ## Install Debian packages that are missing (root) and the Python environment in .venv

.PHONY: system
system:
	@tools/system_packages.sh $(PYTHON)

$(READY): pyproject.toml setup.py constraints.txt | system
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

.PHONY: demo
demo: setup ## A network adapts on an emulated Cortex-M7; writes build/demo/result.json
	$(PY) examples/demo.py --out build/demo

.PHONY: test
test: setup ## Everything that is checked: lint, the C unit tests, then pytest
	@$(MAKE) --no-print-directory --keep-going lint
	@$(MAKE) --no-print-directory test-c
	@$(MAKE) --no-print-directory test-python

.PHONY: test-python
test-python: setup ## pytest alone; PYTEST_FLAGS="-k planner" picks
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) --dist worksteal --require-tools $(PYTEST_FLAGS)

.PHONY: test-c
test-c: setup ## The C runtime's unit tests on the host
	@if [ -e CMakeLists.txt ]; then \
	  cmake -S . -B build/ctest -DCMAKE_BUILD_TYPE=Debug >build/ctest.log || { cat build/ctest.log; exit 1; }; \
	  cmake --build build/ctest -j $(JOBS) >build/ctest.log || { cat build/ctest.log; exit 1; }; \
	  ctest --test-dir build/ctest --output-on-failure; \
	fi

.PHONY: lint
lint: lint-python lint-types lint-imports lint-c ## All static checks

.PHONY: lint-python
lint-python: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; exit 1; }

.PHONY: tree
tree:
	@tools/lint_tree.sh

PACKAGES = -p tvm_tinytrain $(if $(wildcard benchmarks/*.py),-p benchmarks) $(if $(wildcard examples/*.py),-p examples)

.PHONY: lint-types
lint-types: $(READY) tree
	@echo mypy $(PACKAGES)
	@cd build/tree && $(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache $(PACKAGES) \
	  | sed -E 's#^tvm_tinytrain/(passes|schedules|targets)/#\1/#'

.PHONY: lint-imports
lint-imports: $(READY) tree
	@cd build/tree && $(BIN)/lint-imports --config ../../pyproject.toml --no-cache

C_FILES = $(shell find targets -name '*.c' -o -name '*.h' | sort)

.PHONY: lint-c
lint-c:
	@echo clang-format --dry-run -Werror targets
	@[ -z "$(C_FILES)" ] || clang-format --dry-run -Werror $(C_FILES)

.PHONY: format
format: $(READY) ## Rewrite Python and C in the project's format
	$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format --quiet .
	@[ -z "$(C_FILES)" ] || clang-format -i $(C_FILES)

.PHONY: clean
clean: ## Remove everything that was built; the environment in .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
