# `make help` lists what there is. Everything runs in .venv, which is made when first needed.
PYTHON ?= python3
INSTALLED := .venv/.installed
WITH_TEST_TOOLS := .venv/.installed-with-test-tools
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help install demo test test-system test-all bench evidence evidence-quick faults soak multinode docs lint clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## *(.*)/  make \1|\2/' | column -t -s '|'

install: $(INSTALLED)  ## MegaSLM into .venv, without the tools of the tests; EXTRAS=s3,ray,eval installs these extras too
	$(if $(EXTRAS),$(call pip_install,.[$(EXTRAS)]))
	@echo 'MegaSLM is in .venv. Next: source .venv/bin/activate, and read docs/tutorial.md'

demo: $(INSTALLED)  ## the whole way on a small corpus, into runs/demo
	.venv/bin/megaslm demo

# Most tests run side by side, each with one thread. All others have this machine alone, with all cores, one by one.
# Files start in the given order. Those of ranks are first: they take longest, and ranks are forked more quickly from a
# process that has done little. The many small files of units keep all cores busy to the end. Of systems the faults are
# first: one worker has them all.
UNIT := tests/unit tests/policy
RANKS := tests/ranks
FAULTS := tests/multinode tests/faults
SYSTEM := tests/system
# Python may write bytecode, or every worker and command would compile the same files anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m pytest
SIDE_BY_SIDE := env OMP_NUM_THREADS=1 $(PYTEST) --numprocesses logical --maxprocesses 4 \
    --dist loadfile --no-loadscope-reorder
ONE_BY_ONE = $(PYTEST) $(patsubst %,--ignore %,$(UNIT) $(RANKS) $(SYSTEM) $(1))

test: $(WITH_TEST_TOOLS)  ## the quick tests of units and of ranks
	$(SIDE_BY_SIDE) -m "not slow" $(RANKS) $(UNIT)

test-system: $(WITH_TEST_TOOLS)  ## the quick tests of whole systems: commands, object storage, kills, limits, hosts
	$(SIDE_BY_SIDE) -m "not slow" $(FAULTS) $(SYSTEM)
	$(call ONE_BY_ONE,$(FAULTS)) -m "not slow"

test-all: $(WITH_TEST_TOOLS)  ## all tests, the slow ones too
	$(SIDE_BY_SIDE) $(RANKS) $(UNIT)
	$(SIDE_BY_SIDE) $(SYSTEM)
	$(call ONE_BY_ONE)

bench: $(WITH_TEST_TOOLS)  ## every benchmark, its numbers into runs/bench
	@mkdir -p runs/bench
	@for script in benchmarks/*.py; do \
	    .venv/bin/python "$$script" --json "runs/bench/$$(basename "$$script" .py).json" || exit 1; \
	done

evidence: $(INSTALLED)  ## what token selection buys, into runs/evidence; SUITE="--budget 3 --cores 2" sets options
	.venv/bin/python -m benchmarks.selection_suite $(SUITE)

evidence-quick: $(INSTALLED)  ## the same in minutes: small models, few arms
	.venv/bin/python -m benchmarks.selection_suite --quick $(SUITE)

faults: $(WITH_TEST_TOOLS)  ## every fault that a run has to survive, and their table in docs/operations.md
	$(call pip_install,.[ray])
	rm -f runs/faults.json
	MEGASLM_FAULTS_JSON=runs/faults.json .venv/bin/python -m pytest tests/faults
	MEGASLM_FAULTS_JSON=runs/faults.json .venv/bin/python -m tests.faults.report faults

soak: $(WITH_TEST_TOOLS)  ## a run whose ranks are killed 30 times
	MEGASLM_SOAK_RESTARTS=30 MEGASLM_FAULTS_JSON=runs/soak.json .venv/bin/python -m pytest tests/faults/test_soak.py

multinode: $(WITH_TEST_TOOLS)  ## runs over two hosts and a Slurm made on this one (Linux, as root), and their table
	rm -f runs/nodes.json
	MEGASLM_FAULTS_JSON=runs/nodes.json .venv/bin/python -m pytest tests/multinode
	MEGASLM_FAULTS_JSON=runs/nodes.json .venv/bin/python -m tests.faults.report nodes

docs: $(WITH_TEST_TOOLS)  ## the pages of docs/ as a site, into build/docs/site; a dead link fails
	.venv/bin/python -m docs.site

lint: $(WITH_TEST_TOOLS)  ## style, format and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/mypy --package benchmarks.selection_suite
	MYPYPATH=benchmarks .venv/bin/mypy $(patsubst benchmarks/%.py,--module %,$(wildcard benchmarks/*.py))

clean:  ## remove caches and build outputs; .venv and runs stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

# The stamps come last, so that an interrupted installation is taken up again. Bytecode is written here once: where Python
# may not write any (PYTHONDONTWRITEBYTECODE), every process of every rank would compile torch anew. uv reads the overrides
# of pyproject.toml only in this folder, and looks for local wheels where pip does.
pip_install = env $${PIP_FIND_LINKS:+UV_FIND_LINKS="$$PIP_FIND_LINKS"} \
    .venv/bin/uv pip install --compile-bytecode --python .venv -c constraints.txt -e '$(1)'

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("MegaSLM needs Python 3.11 or newer; $(PYTHON) is %d.%d.%d. Name another one: make PYTHON=python3.12 ..." % sys.version_info[:3])'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet uv
	@echo 'Installs PyTorch and the other packages and compiles their bytecode: two minutes or more, the last of them silent'
	$(call pip_install,.)
	@touch $@

$(WITH_TEST_TOOLS): $(INSTALLED)
	$(call pip_install,.[dev])
	@touch $@
