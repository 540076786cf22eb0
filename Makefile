# Two commands matter: `make demo` and `make test`. Both create what they need in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Most tests wait for sockets, so three processes are right for two cores (four gained 3 %, and made some wait too long).
# Many start processes of ours, which without bytecode files would compile everything anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q -n 3

.PHONY: demo test test-all lint fix lock clean

demo: .venv/installed  ## the main job; ARGS="--script" runs it without a browser
	@CAPLAI_DATA_DIR=$${CAPLAI_DATA_DIR:-$(CURDIR)/.data} $(BIN)/caplai demo $(ARGS)

test: .venv/installed-dev lint  ## within three minutes
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: .venv/installed-dev lint  ## and the slow ones
	@$(PYTEST) $(ARGS)

lint: .venv/installed-dev
	@$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check . && $(BIN)/mypy -p caplai

fix: .venv/installed-dev  ## what ruff can mend by itself
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .

# `uv` reads pyproject.toml and writes every package with its hashes, for Python 3.11 and later.
UV_COMPILE = uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml
lock:
	$(UV_COMPILE) --group build -o requirements.lock
	$(UV_COMPILE) --group build --group dev -o requirements-dev.lock

.venv/bin/python:
	@echo "caplai: making a virtual environment in .venv"
	@$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python requirements.lock pyproject.toml
	@echo "caplai: installing the packages of requirements.lock (hashes checked; about a minute the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	@echo "caplai: installing the tools of the tests (requirements-dev.lock)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

clean:
	rm -rf .venv .data build dist
