# One virtual environment, .venv. A stamp file in it says what is installed, so a second call starts at once; a stamp is
# written only when its installation has finished, so an interrupted one is done again.
#
#   make demo    the light core, then what the built-in model hears in sounds made in code
#   make test    the tests (editable install with training and development extras), JOBS at a time
#   make check   linters, types, dependency rule
#   make bench   latency and front end beside their peers (SOUNDMARK_YAMNET names YAMNet's .tflite file)
#   make results figures of all that is in models/ (SOUNDMARK_ESC50; with RUNS=DIR, where DIR/edge and DIR/tiny and
#                those from scratch were made by `soundmark cv`, their fp32 ones, too), benchmarks, then all tables
#   make clean   remove what these made

PYTHON = python3
JOBS = 2
TIERS = edge tiny edge-scratch tiny-scratch yamnet-cosine
PYTEST_ARGS =
TORCH = $(shell grep '^torch==' constraints.txt)

VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES = $(shell find src -type f ! -name '*.pyc')

# Once the checkout is installed editable, it stays so: a copy of it in site-packages would hide later changes.
EDITABLE = $(if $(wildcard $(VENV)/.soundmark-dev),--editable)

# A bare torch brings GPU packages of more than 2 GB; the pinned one is installed first, and nothing may replace it.
export PIP_CONSTRAINT = constraints.txt

.NOTPARALLEL:
.PHONY: demo test check bench results clean

demo: $(VENV)/.soundmark-core
	$(BIN)/soundmark demo

test: $(VENV)/.soundmark-dev
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

check: $(VENV)/.soundmark-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.soundmark-bench
	$(BIN)/python benchmarks/latency.py --model models/edge/fold5 --model models/tiny/fold5 \
	  --model models/yamnet-cosine/fold5
	$(BIN)/python benchmarks/frontend.py

results: $(VENV)/.soundmark-dev bench
	for name in $(notdir $(wildcard models/*)); do \
	  case $$name in *-esc10) data=esc10:$$SOUNDMARK_ESC50;; *) data=$$SOUNDMARK_ESC50;; esac; \
	  $(BIN)/soundmark evaluate --cv models/$$name --data "$$data" --out docs/results/$$name-5folds.json || exit 1; done
ifdef RUNS
	for tier in $(TIERS); do for fold in 1 2 3 4 5; do rm -rf build/$$tier-fp32/fold$$fold; \
	  $(BIN)/soundmark export $(RUNS)/$$tier/fold$$fold/run --quantize false --out build/$$tier-fp32/fold$$fold || exit 1; \
	  done; $(BIN)/soundmark evaluate --cv build/$$tier-fp32 --out docs/results/$$tier-fp32-5folds.json || exit 1; done
endif
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.soundmark-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is wanted: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.soundmark-core: $(VENV)/.soundmark-venv pyproject.toml constraints.txt $(SOURCES)
	@echo 'Installing the light core into $(VENV)'
	@$(PIP) install $(EDITABLE) .
	@touch $@

$(VENV)/.soundmark-dev: $(VENV)/.soundmark-venv pyproject.toml constraints.txt
	@echo 'Installing $(TORCH), then the training and development extras, into $(VENV)'
	@$(PIP) install '$(TORCH)'
	@$(PIP) install --editable '.[train,data,serve,dev]'
	@touch $@

$(VENV)/.soundmark-bench: $(VENV)/.soundmark-venv pyproject.toml constraints.txt $(SOURCES)
	@echo 'Installing the benchmark extra into $(VENV)'
	@$(PIP) install $(EDITABLE) '.[bench]'
	@touch $@
