# `make help` lists the targets. Needs Python >= 3.9 with venv, git and make; everything else is installed below.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help install infra demo test check format compile audit bench bench-arrivals bench-demo bench-drift bench-first-model bench-image bench-search bench-serving fuzz-serving soak-serving kill-search kill-month kill-simulation check-registry e2e e2e-full cluster-coverage images kind-up kind-down air-gap cluster-up rotate mutants reference screenshots mlflow-ui down clean distclean

PYTHON ?= python3
UV := .tools/bin/uv
READY := .venv/.ready
CHECKOV := .tools/checkov/.ready
RUN := .venv/bin/
# Not the script of this name: its first line holds the checkout's path, which may have a line break.
COMMAND := $(RUN)python -P -m health_predict

# A folder with a copy of the data, for machines that have one. The library itself knows nothing of it.
export SHARED ?= ../shared
LOCAL_DATA := $(wildcard $(SHARED)/data/diabetic_data.csv.gz)
ifneq ($(LOCAL_DATA),)
export HEALTH_PREDICT_DATA_COPY ?= $(abspath $(LOCAL_DATA))
endif

# Where the system has certificates of its own, such as a company proxy's, they count for downloads too.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS ?= 1
endif

# uv keeps what it downloaded in the person's home, where there is one that it may write to.
ifeq ($(shell [ -w "$$HOME" ] && echo writable),)
export UV_CACHE_DIR ?= $(CURDIR)/.tools/cache
endif

# Data of their own: `make test` deletes what is called `.coverage.*`. What runs in the cluster's pods is not measured.
E2E := COVERAGE_FILE=$(CURDIR)/.coverage-e2e $(RUN)python -m pytest -n 0 --cov --cov-report=
CLUSTER_ADAPTERS := */adapters/serving/kubernetes/*,*/adapters/pipelines/kubeflow.py

help: ## Show this list
	@if [ -t 1 ]; then bold='\033[1m' plain='\033[0m'; fi; awk -v bold="$$bold" -v plain="$$plain" \
	    'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %s%-14s%s %s\n", bold, $$1, plain, $$2}' $(MAKEFILE_LIST)

# What the shell has set for another project's Python, uv and pip decides nothing here; where uv finds packages, and how
# it reaches them, does. Without the cache of compiled modules every process takes three times as long to import them.
OF_PLACE := PYTHON_% PYTHONUNBUFFERED $(addprefix UV_,CACHE_DIR CONFIG_FILE CONCURRENT% CREDENTIALS_DIR DEFAULT_INDEX \
    EXTRA_INDEX_URL FIND_LINKS HTTP% INDEX% INSECURE_HOST KEYRING% LINK_MODE NATIVE_TLS NO_CACHE OFFLINE PYTHON \
    PYTHON_% REQUEST_TIMEOUT SSL% SYSTEM_CERTS)
unexport $(filter-out $(OF_PLACE),$(filter PYTHON% UV_%,$(.VARIABLES)))
unexport $(addprefix PIP_,CONSTRAINT DRY_RUN NO_BINARY PREFIX PYTHON ROOT TARGET USER) VIRTUAL_ENV
# Python finds the library by a file that holds the checkout's path: in UTF-8, whatever the locale says.
export PYTHONUTF8 := 1

install: $(READY) ## The locked environment, in .venv

# Pulumi calls uv itself, by its name.
infra: | $(UV) ## The locked environment of the Pulumi program, in pulumi/.venv
	@cd pulumi && $(CURDIR)/$(UV) sync --locked --quiet
	@command -v uv >/dev/null || echo 'Pulumi looks for uv on the PATH -> export PATH="$$PATH:$(CURDIR)/.tools/bin"'

demo: $(READY) ## From nothing to a trained, deployed, answering model on the real data
	@$(COMMAND) demo

# One native thread for each of the three workers: threads that wait for each other's processor spin.
test: $(READY) $(CHECKOV) ## Every check and every test
	@$(MAKE) --no-print-directory check
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(RUN)python -m pytest --cov --cov-report=term --cov-fail-under=90 -n 3 --dist loadfile --no-loadscope-reorder --ignore=tests/e2e $(ARGS)

e2e: $(READY) ## End-to-end tests on the cluster that KUBECONFIG names, without the ones that take minutes
	@$(E2E) -m "e2e and not full" tests/e2e $(ARGS)

e2e-full: $(READY) ## All end-to-end tests
	@$(E2E) tests/e2e $(ARGS)

cluster-coverage: $(READY) ## Coverage of the cluster's adapters, by the last `make test` and `make e2e` together
	@$(RUN)coverage combine --quiet --keep --data-file=.coverage-all $(wildcard .coverage .coverage-e2e)
	@$(RUN)coverage report --data-file=.coverage-all --include='$(CLUSTER_ADAPTERS)' --omit='tests/*' --skip-empty

images: ## Build the pipeline's and MLflow's images and push them
	@k8s/images

kind-up: $(READY) ## From Docker, kind and kubectl to the whole platform on this machine
	@k8s/kind-up

kind-down: ## Delete that cluster; its data stay
	@k8s/kind-down

air-gap: $(READY) ## What kind-up fetches, into FOLDER: Kubeflow's manifests and the list of images by digest
	@$(RUN)python k8s/air_gap.py $(FOLDER)

cluster-up: ## Bring the platform onto the cluster that KUBECONFIG names
	@k8s/up $(or $(OVERLAY),kind)

rotate: ## A new password for the cluster's Postgres
	@k8s/rotate

check: $(READY) ## Formatting, lint, types, dead code, layers
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy
	$(RUN)vulture
	$(RUN)lint-imports --no-cache

format: $(READY) ## Format the code and sort its imports
	$(RUN)ruff format .
	$(RUN)ruff check --fix .

compile: $(READY) ## Compile the pipelines to pipelines/compiled/
	@$(COMMAND) pipeline compile

audit: $(READY) ## Known vulnerabilities of the locked packages; asks a public database
	@$(UV) audit --locked --preview-features audit-command

bench-demo: $(READY) ## How long the demo takes, and a second one
	@$(RUN)python -m benchmarks.demo

bench-drift: $(READY) ## Drift: false alarms, power, CPU beside Evidently, policies on the real stream
	@$(RUN)python -m benchmarks.drift

bench-first-model: $(READY) ## Eight first models and their first window of outcomes: does monitoring condemn what the gates pass?
	@$(RUN)python -m benchmarks.first_model

bench-image: $(READY) ## The second model's image against a builder's; needs a registry on loopback
	@$(RUN)python -m benchmarks.image

bench: $(READY) ## Run every benchmark the README names
	@for name in $(filter-out image,$(basename $(notdir $(wildcard benchmarks/*.py)))); do echo "== $$name"; $(RUN)python -m benchmarks.$$name || exit 1; done

mutants: $(READY) ## Spoil the Pulumi program and its host, one place at a time; the tests must notice each
	@$(RUN)python -m tests.infra.mutants

bench-serving: $(READY) ## Cost of a prediction over HTTP: the usual services and ours
	@$(RUN)python -m benchmarks.serving

bench-arrivals: $(READY) ## A month of 1,000,000 arrivals: taken in night by night, and judged
	@$(RUN)python -m benchmarks.arrivals

bench-search: $(READY) ## A search by the usual script, Optuna alone, halving, and ours
	@$(RUN)python -m benchmarks.search

fuzz-serving: $(READY) ## 20,000 hostile bodies, slow clients and Schemathesis against a running service
	@$(RUN)python -m benchmarks.long.fuzz_serving

soak-serving: $(READY) ## 10 minutes at 80 % of peak, with a rollout and a SIGTERM
	@$(RUN)python -m benchmarks.long.soak_serving

kill-search: $(READY) ## A search on a separate cluster, with an MLflow that dies, and killed with -9: the same winners
	@$(RUN)python -m benchmarks.long.kill_search

kill-month: $(READY) ## Kill a month of monitoring with -9 at random moments; it must end like an undisturbed one
	@$(RUN)python -m benchmarks.long.kill_month

kill-simulation: $(READY) ## Kill a simulation with -9 at random moments; it must end like an undisturbed one
	@$(RUN)python -m benchmarks.long.kill_simulation

check-registry: $(READY) ## The registered model in an environment with only MLflow: it must answer like the endpoint
	@$(RUN)python -m benchmarks.long.check_registry $(ARGS)

reference: $(READY) ## Write docs/reference/ from the code
	@$(RUN)python docs/generate_reference.py

screenshots: $(READY) ## The pictures of README and docs, from what `make demo` left; needs Chromium
	@$(RUN)python docs/screenshots.py

mlflow-ui: $(READY) ## Serve MLflow's pages on loopback
	@$(COMMAND) mlflow-ui

down: $(READY) ## Stop the endpoint
	@$(COMMAND) down

clean: ## Stop the endpoint and delete what the demo wrote (not the environment)
	@if [ "$$(cat $(READY) 2>/dev/null)" = "$$(pwd -P)" ]; then $(COMMAND) down; fi
	rm -rf .health-predict .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis .coverage .coverage.* .coverage-*

distclean: clean ## Delete the environment too
	rm -rf .venv .tools

$(UV):
	@case "$$(pwd -P)" in *:*) echo "the checkout's path has a colon, which no virtual environment can have -> rename that folder"; exit 1;; esac
	@echo "installing uv into .tools"
	@$(PYTHON) -m venv .tools || { echo "python3 cannot make a virtual environment -> Debian: apt-get install python3-venv"; exit 1; }
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.13,<1"

$(CHECKOV): uv.lock pyproject.toml | $(UV)
	@echo "installing checkov into .tools/checkov"
	@UV_PROJECT_ENVIRONMENT=.tools/checkov $(UV) sync --locked --quiet --only-group checkov
	@touch $(CHECKOV)

$(READY): uv.lock pyproject.toml | $(UV)
	@if [ "$$(cat $(READY) 2>/dev/null)" != "$$(pwd -P)" ]; then rm -rf .venv; fi
	@echo "installing the locked environment into .venv (2.6 GB; some minutes, once)"
	@$(UV) sync --locked --extra dev --quiet
	@pwd -P > $(READY)

# An environment holds its own path: a checkout that was moved needs another one.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif
