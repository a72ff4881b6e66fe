# `make demo`, `make test`, `make bench`, `make tables` and `make gpu` set up all that they need in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test bench tables docs gpu format clean

demo: .venv/demo.stamp
	$(BIN)/python -m lightning_ckptkd.commands.demo

test: .venv/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

bench: .venv/bench.stamp
	$(BIN)/python -m benchmarks.distillation.peers

# make tables TASK=fashion_step DATA=folder
TASK ?= digits
tables: .venv/demo.stamp
	$(BIN)/python -m benchmarks.students.tables $(TASK) tables/$(TASK) $(if $(DATA),--data $(DATA))

# a warning is an error, and so is a link to a page or heading that is not there
docs: .venv/docs.stamp
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

# make gpu OUT=folder DATA=folder MINUTES=8; docs/gpu.md has what to do where there is no internet
OUT ?= gpu
MINUTES ?= 8
gpu: .venv/demo.stamp
	$(BIN)/python -m benchmarks.gpu $(OUT) --minutes $(MINUTES) $(if $(DATA),--data $(DATA))

format: .venv/test.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One pip call for everything: torch and torchvision must be chosen together.
.venv/demo.stamp: pyproject.toml
	@echo "Installing into .venv; with torch it takes about 6 GB, and the first time some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[demo]'
	touch $@

.venv/test.stamp: pyproject.toml
	@echo "Installing into .venv; with torch it takes about 6 GB, and the first time some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[demo,export,loggers,projects,test]'
	touch $@

.venv/bench.stamp: pyproject.toml
	@echo "Installing into .venv; with torch it takes about 6 GB, and the first time some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[bench]'
	touch $@

.venv/docs.stamp: pyproject.toml
	@echo "Installing into .venv; with torch it takes about 6 GB, and the first time some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv demo docs/_build
