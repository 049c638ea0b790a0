# Every target sets itself up from a fresh clone: Python 3.11 or newer is all it needs. The second time is instant.
#
#   make demo    a conversation with a trained model, in the terminal and as demo/index.html
#   make web     the page: talk with the models, look into their tokens (make web WEB='--port 8000' for its options)
#   make test    the tests
#   make browser the tests of the page, in Chromium (apt install chromium) and with the model that make demo fetches
#   make lint    style, formatting and types
#   make venv    only the environment, in .venv
#
# Another Python: make PYTHON=python3.12. More for pip, such as an index of your own: make PIP_FLAGS='--index-url …'.

PYTHON ?= python3
PIP_FLAGS ?=
WEB ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WEBVENV := .venv-web
WEBSTAMP := $(WEBVENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo web test browser lint

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

# The page's library takes another Pillow than the one that the tests pin. So it lies in an environment of its own, which holds
# these two and sees everything else in the first.
$(WEBSTAMP): $(STAMP)
	@echo "Installing what the page needs into $(WEBVENV)"
	@$(BIN)/python -m venv $(WEBVENV)
	@$(WEBVENV)/bin/python -c 'import pathlib, sysconfig; from sys import argv; \
		pathlib.Path(sysconfig.get_path("purelib"), "beneath.pth").write_text(f"import site; site.addsitedir({argv[1]!r})\n")' \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@sed 's/^pillow==.*/pillow==12.3.0/' constraints.txt > $(WEBVENV)/constraints.txt
	@$(WEBVENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c $(WEBVENV)/constraints.txt pillow gradio playwright
	@touch $@

web: $(WEBSTAMP)
	@$(WEBVENV)/bin/python -m rebus.apps.cli web $(WEB)

test: $(STAMP)
	@$(BIN)/python -m pytest -q

browser: $(WEBSTAMP)
	@$(WEBVENV)/bin/python -m pytest -q tests/apps/test_web_page.py tests/apps/test_inspecting.py

lint: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
