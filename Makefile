# The two commands, `make demo` and `make test`, set up all that they need in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test format clean

demo: .venv/demo.stamp
	$(BIN)/python -m lightning_ckptkd.demo

test: .venv/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

format: .venv/test.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One pip call for everything: torch and torchvision must be chosen together.
.venv/demo.stamp: pyproject.toml
	@echo "Installing into .venv; torch, if it is not there yet, is about 5.5 GB and takes some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[demo]'
	touch $@

.venv/test.stamp: pyproject.toml
	@echo "Installing into .venv; torch, if it is not there yet, is about 5.5 GB and takes some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[demo,test]'
	touch $@

clean:
	rm -rf .venv demo
