# The contributor's API. `make demo` and `make test` need Python 3.10 or newer and pip; they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT := runs/demo
DEMO := compare --methods bp,dcl-s,dcl,dcl-ld,pred --model vgg8b --model.width 0.125 --data fashion-mini \
	--epochs 4 --seeds 1 --out $(DEMO_OUT) --resume auto

.PHONY: demo test test-slow notebook lint types check docs bench clean
.DEFAULT_GOAL := check

# The package with its core dependencies: what a user gets.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("localprop needs Python 3.10 or newer; try: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# The tools of contributors and the optional sinks on top of it.
$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs,tensorboard,wandb]'
	touch $@

demo: $(VENV)/installed  ## train backprop and four local methods on real images; print one table
	$(BIN)/localprop $(DEMO)

test: $(VENV)/installed-dev  ## the tests of every commit, a process a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n auto

test-slow: $(VENV)/installed-dev  ## the rest; full-size data with LOCALPROP_DATA
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n auto

notebook: $(VENV)/installed-dev  ## run examples/first-steps.ipynb from top to bottom
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/integrations/test_notebook.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

check: lint types test

docs: $(VENV)/installed-dev  ## the documentation as a site in build/site; its links and its API page must hold
	rm -rf build/site-source
	mkdir -p build/site-source
	cp -r README.md CONTRIBUTING.md CHANGELOG.md LICENSE docs benchmarks examples build/site-source
	$(BIN)/mkdocs build --strict

bench: $(VENV)/installed  ## the committed benchmark on MNIST; needs LOCALPROP_DATA
	$(BIN)/localprop compare --methods bp,dcl,dcl-s,dcl-ld,dcl-cosine,feat,pred --model fc --data mnist \
		--epochs 15 --seeds 3 --out runs/mnist-fc --resume auto

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
