# Everything sets itself up: `make train` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV ?= .venv
VENV_OLDEST ?= .venv-oldest
CONFIG ?= configs/digits.py
WORKDIR ?= runs/$(basename $(notdir $(firstword $(subst :, ,$(CONFIG)))))
ARGS ?=

IN_VENV = $(VENV)/bin/python -m
PIP_INSTALL = pip install --quiet --disable-pip-version-check --constraint
INSTALL = $(IN_VENV) $(PIP_INSTALL) constraints.txt
# A worker runs whole files, because their tests share runs and compiled programs.
PYTEST = pytest --numprocesses=auto --dist=loadfile

# What `make test-oldest` runs: files, and a golden case of each family of models.
OLDEST_FILES = $(addprefix tests/test_,transforms.py sparse_layers.py saved_workdir.py golden.py)
OLDEST_CASES = static_random or discrete_time_dnw or continuous_dnw or mbv1_imagenet_dnw_x225 \
	or mobilenetv1_x25_cifar or resnet18_dense
# On some processors (AVX2 without AVX-512) one gradient of this case, of `bn1.bias`, differs by 0.14 %
# with jax 0.7.2; 0.1 % is allowed. Current versions of jax agree on all of them.
NOT_ON_OLDEST = test_gradients and resnet18_dense

.DEFAULT_GOAL := help
.PHONY: help train test test-slow test-oldest lint format clean

help:
	@echo "make train        discover the wiring of a small network on handwritten digits (or:"
	@echo "                  make train CONFIG=configs/cifar10_tiny.py ARGS='--config.num_epochs=6')"
	@echo "make test         run the tests that are not marked slow (10 minutes on two cores)"
	@echo "make test-slow    run the tests that are marked slow"
	@echo "make test-oldest  run some tests on the oldest versions that setup.cfg allows"
	@echo "make lint         check style and types"
	@echo "make format       rewrite the code in our style"
	@echo "make clean        remove the environments and caches, never runs/"

train: $(VENV)/installed-for-training
	$(IN_VENV) dnw_jax.main --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

test: $(VENV)/installed-for-testing
	$(IN_VENV) $(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/installed-for-testing
	$(IN_VENV) $(PYTEST) -m slow $(ARGS)

test-oldest: $(VENV_OLDEST)/installed-for-testing
	@# ml_collections 1.0 has such a string.
	$(VENV_OLDEST)/bin/python -m $(PYTEST) -W "ignore:invalid escape sequence:DeprecationWarning" \
		-m "not slow" \
		-k "not test_golden or (($(OLDEST_CASES)) and not ($(NOT_ON_OLDEST)))" $(OLDEST_FILES) $(ARGS)

lint: $(VENV)/installed-for-testing
	$(IN_VENV) ruff check .
	$(IN_VENV) ruff format --check .
	$(IN_VENV) mypy

format: $(VENV)/installed-for-testing
	$(IN_VENV) ruff check --fix .
	$(IN_VENV) ruff format .

clean:
	rm -rf $(VENV) $(VENV_OLDEST) build dist *.egg-info
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "dnw_jax needs Python 3.11 or newer; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@# Without `rm`, a half-made environment (Debian without python3-venv) would count as made.
	$(PYTHON) -m venv $* || { rm -f $@; exit 1; }

$(VENV)/installed-for-training: $(VENV)/bin/python setup.cfg pyproject.toml constraints.txt
	@echo "installing into $(VENV); the first time takes a minute or two"
	$(INSTALL) --editable '.[digits]'
	@touch $@

$(VENV)/installed-for-testing: $(VENV)/bin/python setup.cfg pyproject.toml constraints.txt
	@echo "installing into $(VENV); the first time takes a minute or two"
	$(INSTALL) --editable '.[digits,test]'
	@touch $@

$(VENV_OLDEST)/installed-for-testing: $(VENV_OLDEST)/bin/python setup.cfg pyproject.toml constraints-oldest.txt
	@echo "installing into $(VENV_OLDEST); the first time takes a minute or two"
	$(VENV_OLDEST)/bin/python -m $(PIP_INSTALL) constraints-oldest.txt --editable '.[digits,test]'
	@touch $@
