# Two commands do everything on a fresh machine with Python 3.11 or later:
#   make demo    set up, then train and evaluate on the built-in dataset (runs/demo)
#   make test    set up, then run the fast tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --durations=15

.PHONY: demo small test test-integration test-all slow fuzz lint docs clean

$(VENV)/.installed: requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m dgia_jax.main --config configs/synth_pedes.py --workdir runs/demo

small: $(VENV)/.installed
	$(BIN)/python -m dgia_jax.main --config configs/synth_pedes.py:small --workdir runs/small

# Units, reference numbers, and one small run from end to end.
test: $(VENV)/.installed
	$(PYTEST) -n 2 -m "not integration and not slow and not fuzz"

# What `make test` leaves out: trainings, other processes, datasets built from files.
test-integration: $(VENV)/.installed
	$(PYTEST) -n 2 --dist loadfile -m "integration and not slow and not fuzz"

test-all: test test-integration fuzz

slow: $(VENV)/.installed
	$(PYTEST) -m slow

fuzz: $(VENV)/.installed
	$(PYTEST) -m fuzz

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m docs.draw.long_lines

docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) runs site
