# The commands that people use, run in the active Python environment; `make help` lists them.
PYTHON ?= python

.PHONY: help install test test-all lint docs

help: ## list these commands
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 12

install: ## install the package for development, in the versions that the tests run with
	$(PYTHON) -m pip install -c constraints.txt -e '.[dev,docs,examples]'

test: ## run the default tests, which leave the slow ones out
	$(PYTHON) -m pytest -n auto

test-all: ## run all tests, slow ones included
	$(PYTHON) -m pytest -n auto -m ""

lint: ## check style, format, types and calls
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy --config-file .ci/calls.ini benchmarks tools tests

docs: ## build the documentation; a warning is an error
	$(PYTHON) -m mkdocs build --strict -f docs/mkdocs.yml
