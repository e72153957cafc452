# Needs python3, pip and make. Everything happens in .venv beside this file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY := sweeps/ablate_M.yaml

.PHONY: study test coverage slurm-demo notebooks bench bench-record bench-report check clean

study: $(VENV)/installed
	$(BIN)/python -m study.sweep $(STUDY)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=20 --ignore=tests/slurm
	$(BIN)/python -m pytest --durations=5 tests/slurm

# Not part of `test`: on Python 3.11 watching every line takes half as long again, from 3.12 on next to nothing.
coverage: $(VENV)/installed-dev
	COVERAGE_CORE=sysmon $(BIN)/python -m pytest -n 2 --dist worksteal --ignore=tests/slurm --cov --cov-report=term

slurm-demo: $(VENV)/installed-dev
	$(BIN)/python -m tests.slurm.demo

notebooks: $(VENV)/installed-dev
	$(BIN)/python -m analysis.notebooks

bench: $(VENV)/installed
	$(BIN)/python -m study.sweep sweeps/bench_small.yaml

# All that results/bench/ publishes of this machine: half an hour in which nothing else should run.
bench-record: $(VENV)/installed-dev
	$(BIN)/python -m study.bench record
	$(BIN)/python -m study.bench scaling dit-s/2 diffussm-s --side 8 16 32 64
	$(BIN)/python -m study.bench dit-s/2 --mode forward train --peer timm-dit=benchmarks/peers.py:timm_blocks \
		--peer diffusers-dit=benchmarks/peers.py:diffusers_dit
	$(BIN)/python -m study.bench unet-small --mode forward train \
		--peer diffusers-unet=benchmarks/peers.py:diffusers_unet
	$(BIN)/python -m analysis.machine_page results/bench/*/
	$(BIN)/python -m analysis.notebooks 06

bench-report: $(VENV)/installed
	.ci/report

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
