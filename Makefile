# make install | demo | test | test-slow | test-cluster | test-engines | test-gpu | fuzz | lint | bench; all in .venv of this checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FUZZ_RUNS := 20000
FUZZ_JOBS := 2
PARALLEL := --numprocesses 2 --dist worksteal

.PHONY: install demo test test-slow test-cluster test-engines test-gpu fuzz lint unit bench clean

install: $(STAMP)

$(STAMP): setup.cfg setup.py pyproject.toml constraints.txt $(wildcard p2p_dml/kernels/_native*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

demo: install
	$(BIN)/p2p-dml run examples/demo.toml

test: lint unit

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: install
	$(BIN)/pytest $(PARALLEL)

test-slow: install
	$(BIN)/pytest -m slow $(PARALLEL)

test-cluster: install
	$(BIN)/pytest -m cluster

test-engines: install
	$(BIN)/pytest -m engines

test-gpu: install
	$(BIN)/pytest -m cuda
	$(BIN)/python -m benchmarks.gpu --table

fuzz: install
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz.run --runs $(FUZZ_RUNS) --jobs $(FUZZ_JOBS)

bench: install
	$(BIN)/python -m benchmarks.limits
	$(BIN)/python -m benchmarks.rounds
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.startup --peers 16 --peers 100
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.simulation
	$(BIN)/python -m benchmarks.power_mean
	$(BIN)/python -m benchmarks.masks
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 4 -m benchmarks.torchdist
	$(BIN)/python -m benchmarks.curve
	$(BIN)/python -m benchmarks.attacks
	$(BIN)/python -m benchmarks.flood
	$(BIN)/python -m benchmarks.faults

clean:
	rm -rf $(VENV) build *.egg-info p2p_dml/kernels/*.so .mypy_cache .ruff_cache .pytest_cache
