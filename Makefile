# Everything a newcomer needs: `make demo` and `make test`. Both stand on `make setup`, which does nothing twice.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint slow wheel clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/wazuka demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

slow: setup
	$(BIN)/python -m pytest -m slow

wheel: setup
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf .venv dist build
