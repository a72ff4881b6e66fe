# `make demo`, `make test`, `make bench` and `make tables` set up all that they need in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test bench tables docs format clean

demo: .venv/demo.stamp
	$(BIN)/python -m lightning_ckptkd.commands.demo

test: .venv/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

bench: .venv/bench.stamp
	$(BIN)/python -m benchmarks.peers

# make tables TASK=fashion_step DATA=folder
TASK ?= digits
tables: .venv/demo.stamp
	$(BIN)/python -m benchmarks.tables $(TASK) tables/$(TASK) $(if $(DATA),--data $(DATA))

# a warning is an error, and so is a link to a page or heading that is not there
docs: .venv/docs.stamp
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

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
