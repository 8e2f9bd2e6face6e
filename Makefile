# make demo, make test and make lint each work on a bare clone: they create .venv on first use.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-fast lint docs docs-links evidence-quick gallery regression clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.cpu: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[cpu]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps onnx2torch  # its torchvision has to be built for torch's CUDA, and breaks transformers if it is not
	touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[cpu,docs]'
	touch $@

demo: $(VENV)/.cpu
	$(VENV)/bin/onnx-obc demo

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

test-fast: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m 'not slow'

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The site, in build/docs; every warning is an error, links between pages included.
docs: $(VENV)/.docs
	$(VENV)/bin/python -m sphinx -q -W --keep-going -j auto -c docs -b html . build/docs

# Whether the addresses that the pages name answer; it needs a network.
docs-links: $(VENV)/.docs
	$(VENV)/bin/python -m sphinx -q -j auto -c docs -b linkcheck . build/docs-links

# The last column of each table of docs/results.md, on a part of the data. It needs the models and images that CONTRIBUTING.md names.
evidence-quick: $(VENV)/.dev
	$(VENV)/bin/python -m benchmarks.evidence --quick

# Report pages of four models in docs/gallery. It needs the models and images that CONTRIBUTING.md names; without, digits alone.
gallery: $(VENV)/.dev
	$(VENV)/bin/python -m benchmarks.gallery

# Whether results are still those of benchmarks/results/reference.yaml.
regression: $(VENV)/.dev
	$(VENV)/bin/python -m benchmarks.regression

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
