# `make demo` and `make test` set up all that they need: the first call makes .venv from requirements.lock.

VENV   ?= .venv
OUT    ?= runs/demo
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# What is used of the packages is compiled at the first use, and kept: all of it at once takes over a minute.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test docs lint format lock clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo    train one network that shrinks and one that grows, and draw both (under 2 minutes)"
	@echo "make test    ruff, mypy, the layers of imports and the tests"
	@echo "make docs    build the documentation site in site/"
	@echo "make format  let ruff rewrite what it can"
	@echo "make lock    resolve every dependency afresh into requirements.lock"
	@echo "make clean   remove .venv and the caches"

demo: $(STAMP)
	$(BIN)/npn run moons --mode sparsify --overwrite --out $(OUT)/sparsify
	$(BIN)/npn run moons --mode expand --overwrite --out $(OUT)/expand
	@echo
	@echo "Pictures:"
	@ls $(OUT)/sparsify/*.png $(OUT)/expand/*.png

test: $(STAMP)
	@$(BIN)/python -c 'import platform; from importlib.metadata import version; print(f"Python {platform.python_version()}", *(f"{n} {version(n)}" for n in ("torch", "transformers", "lightning", "accelerate", "onnxruntime", "pytest")), sep=", ")'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadscope

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html; $(BIN)/mkdocs serve shows the same with a search box."

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Rebuilt when the lock or the package's metadata changed; the editable install follows the sources by itself.
$(STAMP): requirements.lock pyproject.toml
	@python=; \
	for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "npn needs Python 3.11 or newer; none of python3, python3.13, python3.12, python3.11 is." >&2; \
	    echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$python --version)"; "$$python" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

# torch comes first and alone, so that what follows takes the torch that is there and brings no second one.
lock:
	@sh tools/lock.sh

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
