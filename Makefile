# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

SANITIZED := build/sanitized

FAST_TESTS := tests/unit/util/test_speed.py tests/property/test_fast.py tests/unit/live tests/property/test_fanout.py \
	tests/unit/protocol/test_chunk.py tests/property/test_chunk.py tests/unit/media/test_timestamps.py tests/property/test_log.py

# Tests start hundreds of servers, and each would compile all modules.
unexport PYTHONDONTWRITEBYTECODE
# pip does not compile all modules of all packages, and of what it builds with: those that are imported are compiled then. 0 means yes.
export PIP_NO_COMPILE = 0

.PHONY: run test lint bench torture sanitize clean

run: $(VENV)/.run
	$(BIN)/rtmpd $(ARGS)

# Most tests wait for something: three at a time, on two cores, each file in one process. What a busy machine broke gets one more try, and is
# shown as rerun. Arguments are for pytest instead.
test: $(VENV)/.test
	$(BIN)/python -m pytest $(or $(ARGS),--numprocesses 3 --dist loadfile --reruns 1 --only-rerun AssertionError --only-rerun Timeout)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.run
	$(BIN)/python -m bench $(ARGS)

# The tests of the extension, which is compiled with AddressSanitizer and UndefinedBehaviorSanitizer, at most 10 minutes.
sanitize: $(VENV)/.test
	$(BIN)/python -m pip install --quiet 'Cython >= 3.1' setuptools
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED) && cp -R rtmpd tests setup.cfg setup.py pyproject.toml README.rst LICENSE $(SANITIZED)
	cd $(SANITIZED) && rm -f rtmpd/_fast.*.so && export LDFLAGS="-fsanitize=address,undefined" && \
		CFLAGS="-g -O1 -fno-omit-frame-pointer -fno-sanitize-recover=all $$LDFLAGS" $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace --force
	cd $(SANITIZED) && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 RTMPD_REQUIRE_FAST=1 timeout 600 $(CURDIR)/$(BIN)/python -m pytest $(or $(ARGS),$(FAST_TESTS))

# Attacks beside a watched stream, at most five minutes: a table of what viewers and the server suffer.
torture: $(VENV)/.run
	$(BIN)/python -m bench torture $(ARGS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.run: setup.cfg setup.py pyproject.toml rtmpd/_fast.pyx | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: setup.cfg setup.py pyproject.toml rtmpd/_fast.pyx | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .[test]
	touch $@ $(VENV)/.run

$(VENV)/.lint: setup.cfg setup.py pyproject.toml rtmpd/_fast.pyx | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .[test,lint]
	touch $@ $(VENV)/.run $(VENV)/.test

clean:
	rm -rf $(VENV) build rtmpd/_fast.c rtmpd/_fast.*.so *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

include install.mk
