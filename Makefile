# Two commands do everything: `make demo` and `make test`. Each sets up .venv first where that is needed.
PYTHON ?= python3
DEMO ?= demo-workspace
JOBS ?= 2
BIN := .venv/bin

# Without bytecode Python compiles torch anew in each process: 20 s instead of 8 until a command begins.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test check format bench clean

demo: .venv/installed
	$(BIN)/tool demo $(DEMO)

test: check

# Many tests wait for a server or a process: two at a time, of one thread each (tests/conftest.py), end in half the time.
check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed
	$(BIN)/python -m bench

setup: .venv/installed

# uv resolves torch and torchvision together, from one index. UV_TORCH_BACKEND=cpu makes it a CPU-only build.
.venv/installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/python -m uv pip install --python $(BIN)/python --editable '.[server,dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
