# Two commands do everything on a fresh machine with Python 3.11 or later:
#   make demo    set up, then train and evaluate the embedded dataset (runs/demo)
#   make test    set up, then run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo small test slow lint clean

$(VENV)/.installed: requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m dgia_jax.main --config configs/synth_pedes.py --workdir runs/demo

small: $(VENV)/.installed
	$(BIN)/python -m dgia_jax.main --config configs/synth_pedes.py:small --workdir runs/small

test: $(VENV)/.installed
	$(BIN)/python -m pytest

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs
