# `make help` lists the targets. Needs Python >= 3.9 with venv, git and make; everything else is installed below.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test check format compile bench bench-serving fuzz-serving soak-serving mlflow-ui down clean distclean

PYTHON ?= python3
UV := .tools/bin/uv
READY := .venv/.ready
RUN := .venv/bin/

# The copy of the data that lies beside some checkouts. The library itself knows nothing of it.
LOCAL_DATA := $(wildcard ../shared/data/diabetic_data.csv.gz)
ifneq ($(LOCAL_DATA),)
export HEALTH_PREDICT_DATA_SOURCE ?= $(abspath $(LOCAL_DATA))
endif

# Where the system has certificates of its own, such as a company proxy's, they count for downloads too.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS ?= 1
endif

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## From nothing to a trained, deployed, answering model on the real data
	@$(RUN)health-predict demo

test: $(READY) ## Every check and every test
	@$(MAKE) --no-print-directory check
	@$(RUN)python -m pytest --cov --cov-report=term --cov-fail-under=90 -n 3 --dist loadfile $(ARGS)

check: $(READY) ## Formatting, lint, types, layers
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy
	$(RUN)lint-imports --no-cache

format: $(READY) ## Format the code and sort its imports
	$(RUN)ruff format .
	$(RUN)ruff check --fix .

compile: $(READY) ## Compile the pipelines to pipelines/compiled/
	@$(RUN)health-predict pipeline compile

bench: $(READY) ## Run every benchmark the README names
	@for script in benchmarks/*.py; do echo "== $$script"; $(RUN)python $$script || exit 1; done

bench-serving: $(READY) ## Cost of a prediction over HTTP: the usual services and ours
	@$(RUN)python benchmarks/serving.py

fuzz-serving: $(READY) ## 20,000 hostile bodies, slow clients and Schemathesis against a running service
	@$(RUN)python benchmarks/long/fuzz_serving.py

soak-serving: $(READY) ## 10 minutes at 80 % of peak, with a rollout and a SIGTERM
	@$(RUN)python benchmarks/long/soak_serving.py

mlflow-ui: $(READY) ## Serve MLflow's pages on loopback
	@$(RUN)health-predict mlflow-ui

down: $(READY) ## Stop the endpoint
	@$(RUN)health-predict down

clean: ## Stop the endpoint and delete what the demo wrote (not the environment)
	@if [ -x $(RUN)health-predict ]; then $(RUN)health-predict down; fi
	rm -rf .health-predict .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis .coverage .coverage.*

distclean: clean ## Delete the environment too
	rm -rf .venv .tools

$(UV):
	@echo "installing uv into .tools"
	@$(PYTHON) -m venv .tools || { echo "python3 cannot make a virtual environment -> Debian: apt-get install python3-venv"; exit 1; }
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.13,<1"

$(READY): uv.lock pyproject.toml | $(UV)
	@echo "installing the locked environment into .venv (about 2 GB; once)"
	@$(UV) sync --locked --extra dev
	@touch $(READY)
