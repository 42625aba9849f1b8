# One command each: `make test` sets up and runs every check; `make demo` sets up and runs the main job.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: help setup setup-dev lint test test-slow test-all test-bits demo docs bench bench-links gpu papers clean

help:
	@grep -E '^# |^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /: /'

INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e '.[cli,report,study]'
	@touch $@

$(VENV)/all: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e '.[all]'
	@touch $@

$(VENV)/dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e '.[dev]'
	$(INSTALL) --no-deps timm open-lars pytorch-optimizer  # to compare with; timm alone would bring another torch
	@touch $@

setup: $(VENV)/all  ## install into .venv, with all extras
setup-dev: $(VENV)/dev  ## install with the tools of the tests

lint: $(VENV)/dev  ## formatting, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: lint  ## set up and run all checks, and all tests but the slow ones
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m "not slow"

test-slow: $(VENV)/dev  ## the slow tests: several processes that die, mutants of each method, whole examples
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m slow

test-all: test test-slow  ## both, as CI does

test-bits: $(VENV)/dev  ## repeat the tests of equal bits under other threads, instruction sets and load
	$(BIN)/python tests/bit_for_bit.py --jobs $(JOBS)

demo: $(VENV)/demo  ## set up and run the main job on real images, in minutes
	@BIN=$(BIN) sh examples/demo.sh

docs: $(VENV)/all  ## build the site into site/
	$(INSTALL) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/dev  ## measure what the loop, the start and the optimizers cost
	$(BIN)/python benchmarks/loop_overhead.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/commands.py
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps torch-optimizer pytorch-ranger
	$(BIN)/python benchmarks/optimizer_step.py
	$(BIN)/python benchmarks/ghost_batch_norm.py
	$(BIN)/python benchmarks/efficiency.py
	$(BIN)/python benchmarks/noise_overhead.py
	$(BIN)/python benchmarks/dual_norm_overhead.py
	$(BIN)/python benchmarks/dual_norm_coverage.py
	$(BIN)/python benchmarks/sharded_checkpoint.py
	$(BIN)/python benchmarks/autowu.py
	$(BIN)/python benchmarks/interval_coverage.py
	$(BIN)/python benchmarks/autowu_false_minima.py
	$(BIN)/python benchmarks/verdict_error.py
	$(BIN)/python benchmarks/simulate_goyal.py
	$(BIN)/python benchmarks/quantized_batch_norm.py
	$(BIN)/python benchmarks/concurrent_adversarial.py
	$(BIN)/python benchmarks/fuzz_files.py
	$(BIN)/python benchmarks/hessian_products.py
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps pyhessian hessian-eigenthings curvlinops-for-pytorch \
		backpack-for-pytorch einops einconv opt-einsum linear-operator tqdm jaxtyping
	$(BIN)/python benchmarks/curvature.py

bench-links: $(VENV)/dev  ## measure on slow links between network namespaces (root), and with workers killed; two hours
	$(BIN)/python benchmarks/links_check.py
	$(BIN)/python benchmarks/overlap.py
	$(BIN)/python benchmarks/gossip_overlap.py
	$(BIN)/python benchmarks/slow_links.py
	$(BIN)/python benchmarks/slow_links.py --table > benchmarks/slow_links.md
	$(BIN)/python benchmarks/simulate_links.py
	$(BIN)/python benchmarks/kill_workers.py
	$(BIN)/python benchmarks/recovery.py
	$(BIN)/python benchmarks/parameter_server.py
	$(BIN)/python benchmarks/decoupled.py
	$(BIN)/python benchmarks/kill_server.py

gpu:  ## all that needs a GPU, in nine minutes, without installing: make gpu PYTHON=python3; see docs/gpu.md
	PYTHONPATH=src $(if $(wildcard $(BIN)/python),$(if $(filter file,$(origin PYTHON)),$(BIN)/python,$(PYTHON)),$(PYTHON)) benchmarks/gpu/run.py

papers: $(VENV)/all  ## write PAPERS.md anew
	$(BIN)/python docs/papers_table.py > PAPERS.md

clean:  ## remove what make made
	rm -rf $(VENV) site
