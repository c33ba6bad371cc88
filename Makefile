# Two commands for a new machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= dev,models

.PHONY: demo test lint types clean

$(VENV)/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/dev: $(VENV)/base
	$(BIN)/pip install -q -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

# A trained diffusion U-Net (MIT licence) that a Python package carries; needs no torch.
demo: $(VENV)/base
	$(BIN)/python -m aigcc.models.fetch adaptive-terrain-diffusion
	$(BIN)/aigcc build aigcc.models.trained:terrain --target mobile \
	    --samples aigcc.models.samples:terrain -o out/demo --overwrite

test: $(VENV)/dev
	$(BIN)/python -m pytest

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# mypy cannot follow the editable install's folder mapping, so it reads a folder of links.
types: $(VENV)/dev
	rm -rf .types && mkdir -p .types/aigcc
	ln -s $(addprefix $(CURDIR)/,$(wildcard compiler/*)) .types/aigcc/
	ln -s $(CURDIR)/passes $(CURDIR)/targets $(CURDIR)/models .types/aigcc/
	cd .types && ../$(BIN)/mypy --config-file ../pyproject.toml -p aigcc

clean:
	rm -rf $(VENV) .types .cache build dist *.egg-info
