# `make reproduce` and `make test` need Python >= 3.11 and make; each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SEEDS ?= 1
# The project's own results lie in results/; a reproduction goes beside them, so that it computes everything itself.
RESULTS ?= reproduced
# Exact versions of all packages; `make CONSTRAINTS=` installs the newest ones that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt

.PHONY: reproduce test bench lint

reproduce: $(VENV)/.installed
	$(RUN) reproduce.py --suite mini --seeds $(SEEDS) --results $(RESULTS)

test: lint
	$(RUN) -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

bench: $(VENV)/.installed
	$(RUN) benchmarks/linear_step.py
	$(RUN) benchmarks/coefficient_sweep.py
	$(RUN) benchmarks/image_cache.py
	$(RUN) benchmarks/adaptation_step.py

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# The stamp is written last: an installation that was broken off is done again.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "expected Python >= 3.11, found %s; set PYTHON=" % sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet $(CONSTRAINTS:%=--constraint %) -e '.[test]'
	touch $@
