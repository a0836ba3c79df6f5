# Two commands: `make demo` and `make test`. On a bare Debian or Ubuntu, `apt-get install -y make` comes before them.
#
#   make setup   .venv with mnet and its tests; compilers and emulator by apt where that is allowed
#   make demo    everything on bundled images, into build/demo
#   make test    all tests
#   make check   what a commit has to pass: lint, format, types, import directions, quick tests
#   make clean   remove what was built; .venv stays
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
READY := .venv/.ready
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.PHONY: help setup tools demo test check clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^#  /s/^#  //p' Makefile

setup: $(READY)

demo: $(READY)
	$(BIN)/mnet demo -o build/demo

test: $(READY)
	$(PYTEST)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -m "not slow"

$(READY): pyproject.toml | tools
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "mnet needs Python 3.11 or newer, and $(PYTHON) is older or missing: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing Python packages into .venv: once, half a minute to some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

# Compilers and emulator: by apt where that is there and allowed, else a line on what to install. mnet goes on without
# them: the Python packages bring zig and Unicorn.
tools:
	@missing=""; \
	command -v cc > /dev/null || missing="$$missing gcc libc6-dev"; \
	command -v arm-none-eabi-gcc > /dev/null || missing="$$missing gcc-arm-none-eabi libnewlib-arm-none-eabi"; \
	command -v qemu-system-arm > /dev/null || missing="$$missing qemu-system-arm"; \
	$(PYTHON) -c 'import ensurepip' 2> /dev/null || missing="$$missing python3-venv"; \
	[ -n "$$missing" ] || exit 0; \
	[ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$$missing ca-certificates"; \
	sudo=no; \
	if [ "$$(id -u)" = 0 ]; then sudo=""; elif sudo -n true 2> /dev/null; then sudo="sudo -n"; fi; \
	if [ "$$sudo" != no ] && command -v apt-get > /dev/null; then \
	  echo "Installing$$missing"; \
	  { $$sudo apt-get update -qq && \
	    $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing > /dev/null; \
	  } || echo "apt-get failed; going on without:$$missing" >&2; \
	else \
	  echo "Missing, and not installed from here. On Debian or Ubuntu: sudo apt-get install$$missing" >&2; \
	  echo "On macOS: brew install arm-none-eabi-gcc qemu. Going on with zig and Unicorn." >&2; \
	fi

clean:
	rm -rf build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
