# The commands of the project. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= configs/demo
PORT ?= 8000
ARGS ?=

.DEFAULT_GOAL := help
# What tests/e2e/namespaces.py makes machines of.
PACKAGES := iproute2 openssh-client openssh-server procps rsync util-linux

.PHONY: help setup packages serve test check format fuzz chaos demo clean

help: ## list these commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

# Installed once, and again only when the project's dependencies or compiled kernels change.
$(VENV)/.installed: pyproject.toml $(wildcard model/cpu_kernels/*.cpp model/cpu_kernels/*.h) \
		model/cpu_kernels/build.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

setup: $(VENV)/.installed ## create .venv and install everything in it

packages: ## as root on Debian: install what the tests of `ray up` need, an SSH server among it
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $(PACKAGES) >/dev/null 2>&1; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq --no-install-recommends $(PACKAGES) >/dev/null; fi

serve: setup ## serve MODEL= on PORT= with 1 attention and 2 expert actors; more flags in ARGS=
	@exec $(BIN)/windrose serve $(MODEL) --port $(PORT) --attention-actors 1 --expert-actors 2 $(ARGS)

# A real Prometheus reads the rules and dashboards in the tests; left out where it cannot be had.
# What uses all cores by itself goes first, the rest two files at a time.
test: setup ## run every test
	@command -v promtool > /dev/null || test "$$(id -u)" != 0 || ! command -v apt-get > /dev/null || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus; } > /dev/null 2>&1 || true
	@alone=0; beside=0; export OMP_NUM_THREADS=1; \
	$(BIN)/python -m pytest -m alone || alone=$$?; \
	$(BIN)/python -m pytest -m 'not alone' --numprocesses 2 --dist loadfile || beside=$$?; \
	exit $$((alone | beside))

check: setup ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: setup ## 10,000 requests that no client should send, half from the OpenAPI document, half raw
	$(BIN)/python -m pytest tests/actors/test_http_fuzz.py --fuzz-cases 10000 --timeout 3000

chaos: setup ## kill actors under load for five minutes and compare every answer; flags in ARGS=
	OMP_NUM_THREADS=1 $(BIN)/python -m ops.chaos --serve $(MODEL) --duration 300 --every 6 --seed 1 \
		--kill expert,attention,router --serve-args "--dtype float32 --attention-actors 2 \
		--expert-actors 2 --cpus-per-actor 0.1 --threads-per-actor 1 --peer-timeout 3" $(ARGS)

demo: setup ## train the demo checkpoint again (about 20 minutes)
	$(BIN)/python -m ops.train_demo

clean: ## remove .venv and all caches
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
