# `make help` says what there is. Each target sets up .venv by itself; it needs Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SEEDS ?= 1
# The project's own results lie in results/; a reproduction goes beside them, so that it computes everything itself.
RESULTS ?= reproduced
# Exact versions of all packages; `make CONSTRAINTS=` installs the newest ones that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
# `make TORCH=cpu` installs PyTorch's CPU build: under 1 GB in the place of 5 GB with CUDA. uv knows where it lies.
TORCH ?=
# Tests and workers start tens of programs, each of which would compile src/ again: bytecode is kept in any environment.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help reproduce demo test check docs bench lint formats types all-tests fast-tests

help:  ## what there is
	@echo "make TARGET [SEEDS=1,2,3] [RESULTS=reproduced] [TORCH=cpu] [CONSTRAINTS=constraints.txt] [PYTHON=python3]"
	@sed -n 's/^\([a-z]*\):.*##/  \1 /p' $(MAKEFILE_LIST)

reproduce: $(VENV)/.installed  ## the mini suite into RESULTS/mini, 13 minutes a seed on two cores; open report.html there
	$(RUN) reproduce.py --suite mini --seeds $(SEEDS) --results $(RESULTS)

demo: $(VENV)/.installed  ## two tasks, one picture, a minute or two
	$(RUN) demo.py

# Types are checked while tests run, which leave a core now and then; a wrong one is told among the tests' lines.
test: formats  ## formats, types, all tests: six minutes on two cores
	@$(MAKE) --no-print-directory --jobs=2 types all-tests

check: formats  ## formats, types, the fast tests: about a minute
	@$(MAKE) --no-print-directory --jobs=2 types fast-tests

all-tests: $(VENV)/.installed
	$(RUN) -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

fast-tests: $(VENV)/.installed
	$(RUN) -m pytest -m fast --numprocesses auto --maxprocesses 8 --dist loadfile

docs: $(VENV)/.installed  ## docs/ as a web site in site/, warnings as errors
	$(RUN) -m mkdocs build --strict --quiet

bench: $(VENV)/.installed  ## speed beside the published way, into benchmarks/results/
	$(RUN) -m benchmarks table

lint: formats types  ## formats and types

formats: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(VENV)/.installed
	$(RUN) -m mypy

# The stamp is written last: an installation that was broken off is done again.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "expected Python >= 3.11, found %s; set PYTHON=" % sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
ifneq ($(TORCH),)
	$(RUN) -m pip install --quiet uv
	$(RUN) -m uv pip install --quiet $(CONSTRAINTS:%=--constraint %) --torch-backend $(TORCH) torch torchvision
endif
	$(RUN) -m pip install --quiet $(CONSTRAINTS:%=--constraint %) -e '.[test]'
	touch $@
