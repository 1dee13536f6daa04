# `make reproduce` and `make test` are all that a reader needs. Both install what they need into .venv, first time.
SCALE ?= quick
ONLY ?=
DEVICE ?=
PORT ?= 8000
PYTHON ?= python3
VENV ?= .venv

SHELL := /bin/bash
# What a user says reaches the shell as a variable of the environment: no quote or space in it can break a line.
export SCALE ONLY DEVICE PORT PYTHON VENV
OURS := SCALE ONLY DEVICE PORT PYTHON VENV
KNOWN := $(OURS) VERBOSE CC DATA_DIR CHROMIUM OPTIMIZERS_% CUDA_% PIP_% UV_% %_proxy %_PROXY
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
$(foreach name,$(filter-out $(KNOWN) -%,$(GIVEN)),$(error there is no variable $(name), there are $(OURS)))
# Nor does a setting for another Python reach this one; only how it prints, and where its caches are, is the user's.
unexport $(filter-out PYTHON %ENCODING %UTF8 %LOCALE %BYTECODE %PREFIX %UNBUFFERED,$(filter PYTHON%,$(.VARIABLES)))
# Only `optimizers` is installed; `experiments` is imported from here.
export PYTHONPATH := $(CURDIR)

BIN := "$$VENV"/bin/python
RUN := $(BIN) -m experiments
# For commands that compute in this process, what `experiments` itself gives to all that it starts.
CLEAN := $(BIN) -m experiments.environment $(BIN)

.NOTPARALLEL:
.PHONY: help reproduce book verdicts test serve data benchmark equality publish revalidate clean
.PHONY: install-book install-tests install-benchmarks install-peers

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

reproduce: install-book ## run every experiment, build the book, print the verdicts (SCALE, ONLY, DEVICE)
	@$(RUN) reproduce --scale "$$SCALE" --only "$$ONLY" --device "$$DEVICE"
	@$(BIN) book/build.py
	@$(RUN) verdicts --scale "$$SCALE"
	@echo
	@echo "The book: $$PWD/_build/html/index.html"

book: install-book ## build the book from the records that there are
	@$(BIN) book/build.py

test: install-tests ## run every check: style, types, tests, notebooks, the built site
	$(BIN) -m ruff check .
	$(BIN) -m codespell_lib
	$(BIN) -m mypy
	$(BIN) book/build.py
	$(BIN) -m pytest -n 2 --dist worksteal
	@# The published notebooks again, on copies: they write their records beside themselves.
	@rm -rf _build/nbval && mkdir -p _build/nbval && cp results/quick/*.ipynb _build/nbval/
	$(CLEAN) -m pytest -n 2 --dist loadfile --nbval --nbval-sanitize-with tests/nbval.cfg --nbval-current-env --nbval-cell-timeout=1200 --timeout=1200 _build/nbval
	@# And what is exact comes out as published, on any processor.
	$(CLEAN) -m pytest tests/rerun_records.py

verdicts: install-book ## print your verdicts beside the published ones (SCALE)
	@$(RUN) verdicts $(if $(filter command environment,$(firstword $(origin SCALE))),--scale "$$SCALE")

serve: book ## serve the book on this machine (PORT)
	@said="$$($(BIN) -c 'import os, socket; socket.create_server(("127.0.0.1", int(os.environ["PORT"]))).close()' 2>&1)" || \
		{ echo "error: not on port $$PORT ($${said##*$$'\n'}): try another, PORT=8001" >&2; exit 2; }
	@$(BIN) -m http.server --bind 127.0.0.1 --directory _build/html "$$PORT"

data: install-book ## fetch and verify MNIST and CIFAR-10 (into DATA_DIR)
	@$(RUN) data

benchmark: install-benchmarks ## time the optimizers' steps; hours, on a machine that does nothing else (DEVICE)
	@$(CLEAN) -m benchmarks.step_time --device "$${DEVICE:-cpu}"

equality: install-peers ## step beside a dozen other libraries, and write down how far apart they are
	@$(CLEAN) -m benchmarks.equality

publish: install-book ## check your records and copy them to results/ (SCALE, ONLY)
	@$(RUN) publish --scale "$$SCALE" --only "$$ONLY"

revalidate: install-book ## confirm published records whose code has changed, where no bit moves (SCALE, ONLY)
	@$(RUN) revalidate --only "$$ONLY" $(if $(filter command environment,$(firstword $(origin SCALE))),--scale "$$SCALE")

clean: ## delete all that was made, your runs included, but for .venv
	rm -rf _build .snakemake .mypy_cache .ruff_cache .pytest_cache

# The environment's own Python looks whether it is up to date; where there is none yet, PYTHON makes it.
install-book install-tests install-benchmarks install-peers:
	@python="$$PYTHON"; [[ ! -e $$VENV/.complete-book ]] || ! $(BIN) -c '' 2>/dev/null || python="$$VENV/bin/python"; \
		"$$python" experiments/install.py "$$VENV" $(@:install-%=%)

install-tests install-benchmarks install-peers: install-book
