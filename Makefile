# `make reproduce` and `make test` are all that a reader needs. Both install what they need into .venv, first time.
SCALE ?= quick
ONLY ?=
DEVICE ?=
PORT ?= 8000
PYTHON ?= python3
VENV ?= .venv

SHELL := /bin/bash
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
RUN := $(BIN)/python -m experiments
# Only `optimizers` is installed; `experiments` is imported from here, by the kernels of notebooks too.
export PYTHONPATH := $(CURDIR)

.NOTPARALLEL:
.PHONY: help reproduce book verdicts test serve data benchmark equality publish revalidate clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

reproduce: $(VENV)/.complete-book ## run every experiment, build the book, print the verdicts (SCALE, ONLY, DEVICE)
	@$(RUN) reproduce --scale '$(SCALE)' --only '$(ONLY)' --device '$(DEVICE)'
	@$(BIN)/python book/build.py
	@$(RUN) verdicts --scale '$(SCALE)'
	@echo
	@echo "The book: $(CURDIR)/_build/html/index.html"

book: $(VENV)/.complete-book ## build the book from the records that there are
	@$(BIN)/python book/build.py

test: $(VENV)/.complete-tests ## run every check: style, types, tests, notebooks, the built site
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/python book/build.py
	$(BIN)/python -m pytest -n 2 --dist worksteal
	@# The published notebooks again, on copies: they write their records beside themselves.
	@rm -rf _build/nbval && mkdir -p _build/nbval && cp results/quick/*.ipynb _build/nbval/
	$(BIN)/python -m pytest -n 2 --dist loadfile --nbval --nbval-sanitize-with tests/nbval.cfg --nbval-current-env --nbval-cell-timeout=1200 --timeout=1200 _build/nbval
	@# And what is exact comes out as published, on any processor.
	$(BIN)/python -m pytest tests/rerun_records.py

verdicts: $(VENV)/.complete-book ## print your verdicts beside the published ones (SCALE)
	@$(RUN) verdicts $(if $(filter command environment,$(firstword $(origin SCALE))),--scale '$(SCALE)')

serve: book ## serve the book on this machine (PORT)
	@$(BIN)/python -c 'import socket; socket.create_server(("127.0.0.1", int("$(PORT)"))).close()' 2>&1 | tail -1 >&2; \
		[[ $${PIPESTATUS[0]} == 0 ]] || { echo "error: not on port $(PORT): try another, PORT=8001" >&2; exit 2; }
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

data: $(VENV)/.complete-book ## fetch and verify MNIST and CIFAR-10 (into DATA_DIR)
	@$(RUN) data

benchmark: $(VENV)/.complete-benchmarks ## time the optimizers' steps; hours, on a machine that does nothing else (DEVICE)
	@$(BIN)/python -m benchmarks.step_time --device '$(or $(DEVICE),cpu)'

equality: $(VENV)/.complete-peers ## step beside ten other libraries, and write down how far apart they are
	@$(BIN)/python -m benchmarks.equality

publish: $(VENV)/.complete-book ## check your records and copy them to results/ (SCALE, ONLY)
	@$(RUN) publish --scale '$(SCALE)' --only '$(ONLY)'

revalidate: $(VENV)/.complete-book ## confirm published records whose code has changed, where no bit moves (SCALE, ONLY)
	@$(RUN) revalidate --only '$(ONLY)' $(if $(filter command environment,$(firstword $(origin SCALE))),--scale '$(SCALE)')

clean: ## delete all that was made, your runs included, but for .venv
	rm -rf _build .snakemake .mypy_cache .ruff_cache .pytest_cache

# A stamp says that an install came to its end: it goes before it and comes after it. An environment of ours without
# the first one was killed half-way, and is made anew; one that is not ours is left alone.
define install
@rm -f $@
@echo "installing the extra '$(1)' into $(VENV); the first time this takes a minute or two"
@$(INSTALL) -c constraints.txt -e '.[$(1)]'
@touch $@
endef

ifdef UV
# uv does not read pip's setting for a folder of wheels.
INSTALL = UV_FIND_LINKS="$$PIP_FIND_LINKS" $(UV) pip install --quiet --python $(BIN)/python
else
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check
endif

$(VENV)/.complete-book: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11: name another, make PYTHON=python3.12" >&2; exit 2; }
	@test ! -e $(VENV) -o -e $(VENV)/.ours -o -e $@ || \
		{ echo "error: $(VENV) was not made here: remove it, or name another, make VENV=.venv-book" >&2; exit 2; }
	@test -e $@ || { echo "creating $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@touch $(VENV)/.ours
	$(call install,book)

$(VENV)/.complete-tests: $(VENV)/.complete-book
	$(call install,tests)

$(VENV)/.complete-benchmarks: $(VENV)/.complete-book
	$(call install,benchmarks)

$(VENV)/.complete-peers: $(VENV)/.complete-book
	$(call install,peers)
