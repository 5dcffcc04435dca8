# make demo     a sweep of eight runs on real data, from nothing to a comparison; again: all is done, nothing runs
# make test     all tests              make lint     ruff, its format, mypy
# make bench    the budgets            make clean    what was made, except runs/
# make scale    10,000 runs on a real Slurm, slurmctld restarted in the midst of them: an hour; RUNS=500 minutes
#
# PY=python3.12 make demo    makes the environment with another Python (3.11 or later)

PY ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
TYPED := build/typed/orchestrator

.PHONY: demo test lint bench scale clean
.DELETE_ON_ERROR:

demo: .venv/.installed
	@$(BIN)/orch launch experiment=digits_lr
	@echo
	@$(BIN)/orch compare digits-lr
	@echo
	@echo 'Look at the runs in the MLflow UI:  $(BIN)/orch ui'

# Tests of one file stay together: they share servers and clusters. Most of them wait for other programs.
test: .venv/.installed-dev
	$(BIN)/python -m pytest $(or $(ARGS),--numprocesses 3 --dist loadfile --no-loadscope-reorder)

# mypy knows nothing of `__path__`: it is shown the package as it is once installed, made of links.
lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(TYPED) && mkdir -p $(TYPED)
	@cd $(TYPED) && ln -s ../../../orchestrator/* ../../../models ../../../datasets ../../../slurm ../../../conf .
	cd $(TYPED)/.. && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

bench: .venv/.installed-dev
	$(BIN)/python -m bench

scale: .venv/.installed-dev
	SCALE_RUNS=$(or $(RUNS),10000) $(BIN)/python -m pytest tests/slurm/test_scale.py --capture=no --quiet

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing into .venv: some minutes the first time ...'
	@$(INSTALL) --editable .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing with the development tools into .venv: some minutes the first time ...'
	@$(INSTALL) --editable '.[dev,bench]'
	@touch .venv/.installed $@

$(BIN)/python:
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: $(PY) is missing, or older than Python 3.11' >&2; \
	    echo 'fix: install Python 3.11 or later, and name it: make PY=python3.12 $(MAKECMDGOALS)' >&2; exit 2; }
	@$(PY) -m venv --clear .venv || { rm -rf .venv; exit 2; }
