# `make demo` and `make test` need python3 (3.11) and make, nothing else: the first call builds .venv from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-unit check lock clean

demo: $(INSTALLED)
	$(BIN)/python -m jobs.demo

test: $(INSTALLED)
	$(BIN)/python -m pytest tests

test-unit: $(INSTALLED)
	$(BIN)/python -m pytest tests/unit

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# uv installs the locked set in a fraction of pip's time; pip itself only fetches uv, by the hashes of the same lock.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "segmodel needs Python 3.11; name one with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up .venv from requirements.lock (about 6 GB the first time) ..."
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.txt
	$(BIN)/python -m pip install --quiet --require-hashes -r .venv/uv.txt
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

lock:
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra onnx --python-version 3.11 --universal --generate-hashes \
		--no-annotate --no-header --no-emit-index-url --quiet --output-file requirements.lock

clean:
	rm -rf .venv demo-output
