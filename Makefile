# Requires Python 3.11-3.13 and nothing else: every target sets up .venv first.
PYTHON ?= python3
BIN = .venv/bin
DEMO = runs/scenes
export TF_CPP_MIN_LOG_LEVEL = 2
# Large memory pages: a CPU training step takes up to a quarter longer without them.
TRAIN = GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/encnet train

.PHONY: demo test test-all lint docs clean

demo: .venv/installed
	$(TRAIN) --config=configs/scenes.py --workdir=$(DEMO)
	$(BIN)/encnet evaluate --config=configs/scenes.py --workdir=$(DEMO) --split=test
	@echo
	@echo "$(DEMO)/predictions.png shows images, their labels, and the predictions."
	@echo "Segment your own photo: $(BIN)/encnet predict --workdir=$(DEMO) --output=predictions PHOTO.jpg"

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m ''

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed-docs
	$(BIN)/python -m sphinx -W --keep-going --fresh-env -b html docs docs/_build/html

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

.venv/installed: pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else "Python 3.11 to 3.13 is required; this is %d.%d. Try: make PYTHON=python3.11 ..." % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv .venv312 .venv-bench .venv-extras runs build dist docs/_build
