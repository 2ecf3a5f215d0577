PYTHON ?= python3
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow test-engines lint format wheel-check clean

help: ## show this list
	@echo "longrope: what make can do (each command sets up what it needs)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: PYTHON=$(PYTHON) (makes the venv)  PYTEST_ARGS=\"$(PYTEST_ARGS)\""

demo: $(VENV)/.ready-demo ## extend the embedded model's window and show what it gained
	@$(BIN)/longrope demo

# One thread a process: pytest-xdist fills the cores.
test: $(VENV)/.ready-test ## run the tests; PYTEST_ARGS="tests/rope -k yarn" runs a part
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not engines and not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/.ready-test ## run the tests that `make test` leaves out: more ways to train on several processes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

test-engines: $(VENV)/.ready-engines ## compare perplexities with llama.cpp, which is built first
	@$(BIN)/python -m pytest -m engines -s tests/engines

lint: $(VENV)/.ready-test ## check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(VENV)/.ready-test ## put the code into the project's style
	@$(BIN)/ruff check --fix-only
	@$(BIN)/ruff format

wheel-check: $(VENV)/.ready-test ## build the wheel from the sdist, install it alone, import every module
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	echo "Building the sdist, and the wheel from it"; \
	$(BIN)/python -m build --outdir "$$tmp" . > "$$tmp/log" 2>&1 || { cat "$$tmp/log"; exit 1; }; \
	echo "Installing the wheel without extras into a clean venv (a minute or more)"; \
	$(BIN)/python -m venv "$$tmp/venv"; \
	"$$tmp/venv/bin/python" -m pip install -qq --no-compile --disable-pip-version-check --constraint constraints.txt "$$tmp"/*.whl; \
	"$$tmp/venv/bin/python" -I .ci/import_every_module.py; \
	"$$tmp/venv/bin/longrope" --version

clean: ## remove the venv and what was built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.ready-demo: EXTRAS := demo
$(VENV)/.ready-test: EXTRAS := search,finetune,eval,report,data,gguf,dev
$(VENV)/.ready-%: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing longrope[$(EXTRAS)] into $(VENV) (the first time takes minutes: PyTorch is large)"
	@$(PIP_INSTALL) --editable ".[$(EXTRAS)]"
	@touch $@

# A build without the multimodal part, from the source distribution that constraints.txt names.
$(VENV)/.ready-engines: $(VENV)/.ready-test
	@echo "Building llama-cpp-python into $(VENV) (6 minutes on 2 cores; needs a C++ compiler)"
	@CMAKE_BUILD_PARALLEL_LEVEL=$${CMAKE_BUILD_PARALLEL_LEVEL:-2} CMAKE_ARGS=-DLLAVA_BUILD=OFF \
		$(PIP_INSTALL) llama-cpp-python
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "longrope needs Python 3.10 to 3.13; name one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) cannot make a venv; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
