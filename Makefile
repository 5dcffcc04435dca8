# make demo       a sweep of eight runs on real data, from nothing to a comparison; a second time nothing runs
# make test       all tests but the long ones     make lint     ruff, its formatter, mypy
# make bench      the budgets                     make clean    delete what was made, except runs/
# make test-long  the campaigns, an hour and more: 10,000 runs, thousands of kills, fuzzing, each with a printed seed;
#                 make test-long CAMPAIGN=fuzz SEED=7 runs one of them; tests/support/campaigns.py lists them
# make chaos      the campaign of kills at random moments; SEED=7 repeats one
# make scale      the campaign of 10,000 runs on a real Slurm, slurmctld restarted meanwhile; with RUNS=500 fewer
#
# make ui         the MLflow UI over the runs; installs MLflow's server the first time
#
# PY=python3.12 make demo    creates the environment with another Python (3.11 or later)
# TORCH_INDEX= make demo     takes torch from PyPI; TORCH_INDEX=URL from another index

PY ?= python3
BIN := .venv/bin
# PyPI's torch for Linux holds CUDA. With neither a GPU nor Slurm, whose nodes may have some, the CPU's build will do.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi || command -v sbatch),,https://download.pytorch.org/whl/cpu)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
TYPED := build/typed/orchestrator

CAMPAIGNS = $(BIN)/python tests/support/campaigns.py $(if $(SEED),--seed $(SEED))

.PHONY: demo ui test test-long chaos scale lint bench clean
.DELETE_ON_ERROR:

demo: .venv/.installed
	@$(BIN)/orch launch experiment=digits_lr
	@echo
	@$(BIN)/orch compare digits-lr
	@echo
	@echo 'Look at the runs in the MLflow UI:  make ui'
	@echo 'For `orch` alone, as printed above: . $(BIN)/activate'

ui: .venv/.installed-ui
	@$(BIN)/orch ui

# Tests of one file stay in one process, but for those in tests/conftest.py. Most tests wait for other programs.
test: .venv/.installed-dev
	$(BIN)/python -m pytest $(or $(ARGS),--numprocesses 4 --dist loadfile --no-loadscope-reorder)

# mypy does not know `__path__`: it checks the package as it is once installed, built from links.
lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(TYPED) && mkdir -p $(TYPED)
	@cd $(TYPED) && ln -s ../../../orchestrator/* ../../../models ../../../datasets ../../../slurm ../../../conf .
	cd $(TYPED)/.. && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

bench: .venv/.installed-dev
	$(BIN)/python -m bench

test-long: .venv/.installed-dev
	$(CAMPAIGNS) $(CAMPAIGN)

chaos: .venv/.installed-dev
	$(CAMPAIGNS) chaos

scale: .venv/.installed-dev
	$(if $(RUNS),SCALE_RUNS=$(RUNS)) $(CAMPAIGNS) scale-10000

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt .venv/.torch
	@echo 'Installing into .venv: some minutes the first time ...'
	@$(INSTALL) --editable '.[dvc]'
	@touch $@

.venv/.installed-ui: .venv/.installed
	@echo 'Installing MLflow with its server into .venv ...'
	@$(INSTALL) --editable '.[dvc,mlflow]'
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt .venv/.torch
	@echo 'Installing with the development tools into .venv: some minutes the first time ...'
	@$(INSTALL) --editable '.[dev,bench]'
	@touch .venv/.installed .venv/.installed-ui $@

.venv/.torch: constraints.txt | $(BIN)/python
	@$(if $(TORCH_INDEX),$(INSTALL) --no-deps --retries 1 --timeout 20 --index-url $(TORCH_INDEX) torch || \
	  echo 'note: no torch from $(TORCH_INDEX): it comes from where the other packages do' >&2)
	@touch $@

$(BIN)/python:
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: $(PY) is missing, or older than Python 3.11' >&2; \
	    echo 'fix: install Python 3.11 or later, and name it: make PY=python3.12 $(MAKECMDGOALS)' >&2; exit 2; }
	@$(PY) -m venv --clear .venv || { rm -rf .venv; exit 2; }
