# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export HF_HUB_DISABLE_TELEMETRY = 1
export GRADIO_ANALYTICS_ENABLED = False

.PHONY: help demo test test-slow lint system tiny serve clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# Installed once, and again when dependencies change.
$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Attune needs Python 3.11 or newer; call make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	# audiocraft's own pins (torch 2.1) cannot be met; its MusicGen code runs on this stack as it is.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt audiocraft
	@touch $@

demo: $(BIN)/.installed  ## the whole circle on a laptop, with simulated listeners
	$(BIN)/attune demo $(ARGS)

# Files are shared out among processes, so that what a file prepares is prepared once; ARGS=-n0 for one process.
test: $(BIN)/.installed  ## the tests
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

test-slow: $(BIN)/.installed  ## the slow tests too
	$(BIN)/python -m pytest -m 'not gpu' $(ARGS)

lint: $(BIN)/.installed  ## style
	$(BIN)/python -m ruff check .

serve: $(BIN)/.installed  ## the rating app, on the newest demo if there is one
	@home=$$(ls -t data/demo/*/summary.json 2>/dev/null | head -1); \
	  $(BIN)/attune serve $${home:+--home "$$(dirname "$$home")"} $(ARGS)

system:  ## Debian packages of the full tests: a browser and PostgreSQL (needs root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	  python3-venv make git chromium postgresql fonts-dejavu-core

tiny: $(BIN)/.installed  ## rebuild the embedded music model from nothing (hours; needs fluid-soundfont-gm)
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt tinysoundfont
	$(BIN)/python -m scripts.tiny.build

clean:  ## remove the virtual environment and build files, never data/
	rm -rf $(VENV) build .pytest_cache .ruff_cache
