# Everything sets itself up: `make train` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/digits.py
WORKDIR ?= runs/$(basename $(notdir $(firstword $(subst :, ,$(CONFIG)))))
ARGS ?=

IN_VENV = $(VENV)/bin/python -m
INSTALL = $(IN_VENV) pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help train test lint format clean

help:
	@echo "make train   discover the wiring of a small network on handwritten digits (or:"
	@echo "             make train CONFIG=configs/cifar10_tiny.py ARGS='--config.num_epochs=6')"
	@echo "make test    run all tests"
	@echo "make lint    check style and types"
	@echo "make format  rewrite the code in our style"
	@echo "make clean   remove the environment and caches, never runs/"

train: $(VENV)/installed-for-training
	$(IN_VENV) dnw_jax.main --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

test: $(VENV)/installed-for-testing
	$(IN_VENV) pytest --numprocesses=auto --dist=loadfile $(ARGS)

lint: $(VENV)/installed-for-testing
	$(IN_VENV) ruff check .
	$(IN_VENV) ruff format --check .
	$(IN_VENV) mypy

format: $(VENV)/installed-for-testing
	$(IN_VENV) ruff check --fix .
	$(IN_VENV) ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "dnw_jax needs Python 3.11 or newer; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@# Without this a half-made environment (Debian without python3-venv) would count as made.
	$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }

$(VENV)/installed-for-training: $(VENV)/bin/python setup.cfg pyproject.toml constraints.txt
	@echo "installing into $(VENV); the first time takes a minute or two"
	$(INSTALL) --editable '.[digits]'
	@touch $@

$(VENV)/installed-for-testing: $(VENV)/bin/python setup.cfg pyproject.toml constraints.txt
	@echo "installing into $(VENV); the first time takes a minute or two"
	$(INSTALL) --editable '.[digits,test]'
	@touch $@
