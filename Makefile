# Tribes. `make help` lists the targets.
# PYTHON: the interpreter that environments are made from. ARGS: passed on to the target's command.
PYTHON ?= python3.11
ARGS ?=
BIN := .venv/bin
SOURCES := cluster serve_apps batch_jobs benchmarks tests requirements

.DEFAULT_GOAL := help
.PHONY: help env demo test test-fast lint lock down clean prune-env

help: ## list the targets
	@grep -hE '^[a-z%-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z%-]+):.*## /\1\t/' | expand -t 14

env: ## set up .venv (the packages are built once into the user's cache)
	@command -v $(PYTHON) >/dev/null || { \
	  echo "env: no $(PYTHON) on the PATH: install Python 3.11, or name one: make env PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) requirements/setup_env.py

env-gpu-vllm env-gpu-sglang: env-%: ## the same for the interpreter of one engine on GPUs
	@$(PYTHON) requirements/setup_env.py $*

demo: env ## start a cluster with the local model on both engines and send it requests
	@$(BIN)/tribes demo -c configs/local.yaml $(ARGS)

# Engines and clusters get the machine to themselves; 5: ARGS may select nothing of one kind.
test: env ## every test, those with real engines and a Ray cluster too
	@$(BIN)/pytest -n 2 -m "not engine and not live" $(ARGS) || [ $$? -eq 5 ]
	@$(BIN)/pytest -m "engine or live" --durations=15 $(ARGS) || [ $$? -eq 5 ]

test-fast: env ## the tests that need neither an engine nor a Ray cluster
	@$(BIN)/pytest -n 2 -m "not engine and not live" $(ARGS)

lint: env ## ruff (rules and format) and mypy
	@$(BIN)/ruff check $(wildcard $(SOURCES))
	@$(BIN)/ruff format --check $(wildcard $(SOURCES))
	@$(BIN)/mypy

bench-%: env ## run benchmarks/%.py and keep its result
	@mkdir -p benchmarks/results
	@$(BIN)/python -m benchmarks.$(subst -,_,$*) --json benchmarks/results/$(subst -,_,$*).json $(ARGS)

lock: ## recompile requirements/*.txt from the .in files (UPGRADE=1: newest versions)
	@$(PYTHON) requirements/lock.py $(if $(UPGRADE),--upgrade) $(ARGS)

down: ## stop the local cluster
	@if [ -x $(BIN)/tribes ]; then $(BIN)/tribes down $(ARGS); else echo "down: no .venv here, so nothing was started from it"; fi

clean: ## remove .venv and tool caches of this checkout (the shared packages and models stay)
	@rm -rf .venv .venv-* .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info
	@find $(wildcard $(SOURCES)) -name __pycache__ -type d -prune -exec rm -rf {} +

prune-env: ## remove shared packages of other locks than this checkout's
	@$(PYTHON) requirements/setup_env.py --prune
