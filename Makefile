# Every target sets itself up from a fresh clone: Python 3.11 or newer is all it needs. The second time is instant.
#
#   make demo    a conversation with a trained model, in the terminal and as demo/index.html
#   make web     the page: talk with the models, look into their tokens (make web WEB='--port 8000' for its options)
#   make test    the tests
#   make browser the tests of the page, in Chromium (apt install chromium) and with the model that make demo fetches
#   make lint    style, formatting and types
#   make docs    the documentation, in site/
#   make venv    only the environment, in .venv
#
# Another Python: make PYTHON=python3.12. More for pip, such as an index of your own: make PIP_FLAGS='--index-url …'.

PYTHON ?= python3
PIP_FLAGS ?=
WEB ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo web test browser lint docs

help:
	@sed -n 's/^#   //p' Makefile

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found. Name a Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version) is too old. Name a Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "No virtual environment could be made. On Debian and Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 1; }
	@echo "Installing into $(VENV) (the first time: a few minutes and a few gigabytes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m rebus.apps.demo

# the page's library takes an older Pillow than the any-resolution goldens were made with: an environment of its own
WEB_VENV := .venv-web
WEB_STAMP := $(WEB_VENV)/.installed

$(WEB_STAMP): pyproject.toml constraints.txt
	@test -x $(WEB_VENV)/bin/python || $(PYTHON) -m venv $(WEB_VENV)
	@echo "Installing into $(WEB_VENV) (the first time: a few minutes and a few gigabytes)"
	@sed 's/^pillow==.*/pillow<13/' constraints.txt > $(WEB_VENV)/constraints.txt
	@$(WEB_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c $(WEB_VENV)/constraints.txt -e '.[demo]'
	@touch $@

web: $(WEB_STAMP)
	@$(WEB_VENV)/bin/rebus web $(WEB)

browser: $(WEB_STAMP)
	@$(WEB_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c $(WEB_VENV)/constraints.txt -e '.[demo,train]' pytest playwright
	@$(WEB_VENV)/bin/python -m pytest -q tests/apps/test_web_page.py tests/apps/test_inspecting.py

test: $(STAMP)
	@$(BIN)/python -m pytest -q

lint: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html"
