# make serve MODEL=DIR   install what is missing, then serve
# make install           .venv with hearth in it; quick when nothing has changed
# make check, make test  what CI runs
# make test-long, make test-sanitize, make format, make native, make clean
# make gpu-check         on a GPU: tests/gpu, then what is measured there; JSON to $OUT
#
# pip reads its index, mirrors and find-links from its own configuration; nothing here sets them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_INSTALL := $(PIP) install --quiet -c constraints.txt

# The torch that the constraints name, asked for by its exact version: a range would let pip take
# another build of another version from a find-links directory.
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
BUILD_TOOLS := scikit-build-core cmake ninja

# The stamps live in the environment, so that they go with it, and name whether a compiler was
# there, so that installing one later builds the library.
CXX_COMMAND := $(firstword $(CXX))
TOOLCHAIN := $(if $(shell command -v $(CXX_COMMAND) 2>/dev/null),native,pure)
INSTALLED := $(VENV)/.hearth-$(TOOLCHAIN)
INSTALLED_DEV := $(VENV)/.hearth-dev-$(TOOLCHAIN)
INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/hearth/kernels/cpu/csrc/*)

MODEL ?=
ARGS ?=
PYTEST_ARGS ?=

TEST_DIRS := $(wildcard tests/unit tests/contract tests/integration)
TYPED_DIRS := $(wildcard src tests tools)
CXX_SOURCES := $(wildcard src/hearth/kernels/cpu/csrc/*.cpp src/hearth/kernels/cpu/csrc/*.h)

.DEFAULT_GOAL := help
.PHONY: help install install-dev serve test test-long test-sanitize check format native clean \
  gpu-check

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

install: $(INSTALLED)

install-dev: $(INSTALLED_DEV)

# cmake and ninja are installed first and hearth is built with them, so that the build tools are
# pinned like everything else and a second build compiles only what changed.
$(INSTALLED): $(INPUTS) | $(BIN)/python
	@$(MAKE) --no-print-directory check-compiler
	$(PIP_INSTALL) $(BUILD_TOOLS)
	$(PIP_INSTALL) --no-build-isolation -e .
	@rm -f $(VENV)/.hearth-native $(VENV)/.hearth-pure && touch $@

$(INSTALLED_DEV): $(INPUTS) | $(BIN)/python
	@$(MAKE) --no-print-directory check-compiler
	$(PIP_INSTALL) $(BUILD_TOOLS)
	$(PIP_INSTALL) --no-build-isolation -e '.[dev]' $(TORCH)
	@rm -f $(VENV)/.hearth-* && touch $(INSTALLED) $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "hearth needs Python 3.11 or newer and finds no '$(PYTHON)'. On Debian or Ubuntu:" >&2; \
	  echo "    apt-get install -y python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "hearth needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." >&2; \
	  echo "Name another one: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "This Python cannot make virtual environments. On Debian or Ubuntu:" >&2; \
	  echo "    apt-get install -y python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

.PHONY: check-compiler
check-compiler:
	@:
ifeq ($(TOOLCHAIN),pure)
	@echo "warning: no C++ compiler ('$(CXX_COMMAND)'): hearth installs without its CPU library," >&2
	@echo "warning: and serving then needs the extra hearth[torch]. On Debian or Ubuntu:" >&2
	@echo "warning:     apt-get install -y g++" >&2
	@echo "warning: and then the same make command again." >&2
endif

serve: $(INSTALLED)
	$(BIN)/hearth serve $(MODEL) $(ARGS)

test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest $(TEST_DIRS) -m "not long and not gpu" $(PYTEST_ARGS)

test-long: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -m "long and not gpu" $(PYTEST_ARGS)

# By the Python at hand, where torch and triton are: a machine with a GPU may have no network.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py $(ARGS)

check: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TYPED_DIRS)
	$(BIN)/lint-imports
ifneq ($(CXX_SOURCES),)
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
endif

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
ifneq ($(CXX_SOURCES),)
	$(BIN)/clang-format -i $(CXX_SOURCES)
endif

# The C++ library alone, in seconds, for work on the kernels: the build of the editable install.
native:
	@test -f build/editable/CMakeCache.txt -a -x $(BIN)/cmake || $(MAKE) --no-print-directory install-dev
	@$(BIN)/cmake -S . -B build/editable -DSKBUILD_STATE=editable \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) >/dev/null
	$(BIN)/cmake --build build/editable

# The kernel tests with AddressSanitizer and UndefinedBehaviorSanitizer, on a copy of the package:
# a library built with them loads only into a process that has their runtime.
SANITIZED := build/sanitize
SANITIZE_TESTS ?= tests/unit/kernels
test-sanitize: | $(INSTALLED_DEV)
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DHEARTH_SANITIZE=ON \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) >/dev/null
	$(BIN)/cmake --build $(SANITIZED)
	rm -rf $(SANITIZED)/src && cp -r src $(SANITIZED)/src
	cp $(SANITIZED)/libhearth_cpu.so $(SANITIZED)/src/hearth/kernels/cpu/
	PYTHONPATH=$(SANITIZED)/src ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  $(BIN)/python -m pytest $(SANITIZE_TESTS) -m "not long and not gpu" $(PYTEST_ARGS)

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f src/hearth/kernels/cpu/*.so $(VENV)/.hearth-*
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
