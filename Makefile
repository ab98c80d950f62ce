# `make demo` and `make test` need make and python3, nothing else: the first call builds .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
BOOTSTRAP := .bootstrap

.PHONY: demo test test-unit check lock clean

demo: $(INSTALLED)
	$(BIN)/python -m jobs.demo

# What starts Ray has the machine for itself; the unit tests share the cores.
UNIT := OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit --numprocesses auto --dist loadfile

test: $(INSTALLED)
	$(BIN)/python -m pytest tests/integration; integration=$$?; $(UNIT) && exit $$integration

test-unit: $(INSTALLED)
	$(UNIT)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# pip only fetches uv, by the hashes of the lock. uv makes .venv with $(PYTHON) if that is 3.11 to 3.13; otherwise it
# takes such a Python from PATH or downloads one.
$(INSTALLED): requirements.lock pyproject.toml
	@echo "Setting up .venv from requirements.lock, once: about 7 GB are downloaded and unpacked, most of it PyTorch with CUDA."
	@rm -rf $(BOOTSTRAP)
	@$(PYTHON) -m venv $(BOOTSTRAP)
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(BOOTSTRAP)/uv.txt
	@$(BOOTSTRAP)/bin/python -m pip install --quiet --require-hashes -r $(BOOTSTRAP)/uv.txt
	@python=$$($(PYTHON) -c 'import sys; print(sys.executable if (3, 11) <= sys.version_info[:2] <= (3, 13) else ">=3.11,<3.14")'); \
		$(BOOTSTRAP)/bin/uv venv --allow-existing --python "$$python" .venv || \
		{ echo "segmodel needs Python 3.11, 3.12 or 3.13; name one with: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(BOOTSTRAP)/bin/uv pip sync --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	@$(BOOTSTRAP)/bin/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@rm -rf $(BOOTSTRAP)
	@touch $@

lock:
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra onnx --python-version 3.11 --universal --generate-hashes \
		--no-annotate --no-header --no-emit-index-url --quiet --output-file requirements.lock

clean:
	rm -rf .venv $(BOOTSTRAP) demo-output
