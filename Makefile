# Needs Python 3.11 to 3.13 and nothing else: each target sets up .venv first.
PYTHON ?= python3
BIN = .venv/bin
DEMO = runs/scenes
export TF_CPP_MIN_LOG_LEVEL = 2

.PHONY: demo test lint clean

demo: .venv/installed
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python train.py --config=configs/scenes.py --workdir=$(DEMO)
	$(BIN)/python evaluate.py --config=configs/scenes.py --workdir=$(DEMO) --split=test
	@echo
	@echo "Look at $(DEMO)/predictions.png: pictures, their labels, and predictions."
	@echo "Your own photo: $(BIN)/python predict.py --workdir=$(DEMO) --output=predictions PHOTO.jpg"

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else "Python 3.11 to 3.13 is needed; this is %d.%d. Try: make PYTHON=python3.11 ..." % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv runs build
