# Needs python3, pip and make. Everything happens in .venv beside this file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY := sweeps/ablate_M.yaml

.PHONY: study test slurm-demo notebooks check clean

study: $(VENV)/installed
	$(BIN)/python -m study.sweep $(STUDY)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal --ignore=tests/slurm
	$(BIN)/python -m pytest tests/slurm

slurm-demo: $(VENV)/installed-dev
	$(BIN)/python -m tests.slurm.demo

notebooks: $(VENV)/installed-dev
	$(BIN)/python -m analysis.notebooks

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
