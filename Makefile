# `make demo`, `make server`, `make bench` and `make test` need Python 3.11 to 3.14 (with venv) and this folder; the rest
# they set up themselves: .venv with the pins of conda.yaml, to which `make test` adds those of requirements-dev.txt.
# PYTHON=python3.12 makes .venv anew if another Python made it; with VENV=.venv-3.12 there are two side by side.

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
INSTALLED := $(VENV)/installed
DEV_READY := $(VENV)/ready-dev
VERSION := import sys; print(*sys.version_info[:2])
ifdef PYTHON
ifneq ($(shell $(PYTHON) -c '$(VERSION)'),$(shell $(BIN)/python -c '$(VERSION)' 2>/dev/null))
.PHONY: $(READY)
endif
endif
PYTHON ?= python3
DEMO := .demo
BENCH_READY := .venv-bench/ready

# the main job on your own: make demo CHECKPOINT=last.ckpt DATA=leaves NON_PLANTS=others UNSEEN_PLANTS=more FIELD=orchard
ifneq ($(origin CHECKPOINT),$(origin DATA))
$(error CHECKPOINT and DATA go together: make demo CHECKPOINT=last.ckpt DATA=leaves [NON_PLANTS=others] [UNSEEN_PLANTS=more] [FIELD=orchard])
endif
CHECKPOINT ?= $(DEMO)/demo.ckpt
DATA ?= $(DEMO)/data
NON_PLANTS ?= $(if $(filter $(DEMO)/data,$(DATA)),$(DEMO)/non_plants)
UNSEEN_PLANTS ?=
FIELD ?=
NAME ?= plant-disease
BUNDLE ?= public/models
POLICY ?= gates.toml
# more options for `make bench`, such as BENCH=--quick
BENCH ?=
PORT ?= 5000
# of `make page`
PAGE_PORT ?= 8000

export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_TRACKING_URI ?= sqlite:///mlflow.db
export PYTHONUNBUFFERED := 1

.PHONY: demo server page bench test slow-tests lint check docs environments lock setup develop

demo: setup
ifeq ($(CHECKPOINT),$(DEMO)/demo.ckpt)
	python -m examples.drawn_leaves $(DEMO)
endif
	mlflow run . --env-manager local -P checkpoint='$(CHECKPOINT)' -P data='$(DATA)' -P non_plants='$(NON_PLANTS)' \
	  -P unseen_plants='$(UNSEEN_PLANTS)' -P field='$(FIELD)' -P name='$(NAME)' -P bundle='$(BUNDLE)' -P policy='$(POLICY)'
	python -m mlflow_plugins.jobs show --name '$(NAME)' --data '$(DATA)' --non-plants '$(NON_PLANTS)'

# The demo's database behind the gated registry, and MLflow's UI on it.
server: setup
	mlflow server --host 127.0.0.1 --port $(PORT) --backend-store-uri '$(MLFLOW_TRACKING_URI)' \
	  --registry-store-uri 'plantmodels:$(MLFLOW_TRACKING_URI)' --artifacts-destination mlartifacts

# The page that classifies images in the browser, with the bundle of public/models, on http://localhost:8000.
page: page/node_modules/.package-lock.json
	node page/build.mjs public
	@echo 'the page: http://localhost:$(PAGE_PORT)/'
	$(PYTHON) -m http.server --bind 127.0.0.1 --directory public $(PAGE_PORT)

# Ours beside its peers, and what everything costs: make bench CHECKPOINT=last.ckpt DATA=leaves BUNDLE=public/models
# The part `service` needs the extra `service`, which `develop` installs.
bench: develop $(BENCH_READY)
	.venv-bench/bin/python -m benchmarks --checkpoint '$(CHECKPOINT)' --data '$(DATA)' --bundle '$(BUNDLE)' $(BENCH)

# One thread for each of the two processes: more threads than cores wait for each other by spinning.
test slow-tests check: export OMP_NUM_THREADS := 1

test: develop
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not real"

# Every other test: those that take more than a few seconds, and those on the real images of ../shared.
slow-tests: develop
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow or real"

lint: develop
	ruff format --check
	ruff check
	mypy

check: lint test slow-tests

# A site from docs/ and the docstrings, in site/index.html; broken links and references are errors.
docs: develop
	python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet docs site

# The serving rooms' tests in fresh environments: the floors of pyproject.toml, and every Python that is found.
environments: develop
	python .ci/environments.py

# Writes conda.yaml and the two requirements files from pyproject.toml; needs the package index.
lock: develop
	python .ci/lock.py $(UPGRADE)

# MLflow finds the gated registry by this project's entry point, so the project is installed as well.
setup: $(READY) $(INSTALLED)

develop: setup $(DEV_READY)

$(READY): conda.yaml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14) and "Python 3.11 to 3.14 is needed, PYTHON=$(PYTHON) is " + sys.version)'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	sed -n 's/^      - //p' conda.yaml > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --progress-bar off -r $(VENV)/requirements.txt
	touch $(READY)

$(INSTALLED): pyproject.toml $(READY)
	$(BIN)/python -m pip install --progress-bar off --no-deps --editable .
	touch $(INSTALLED)

$(DEV_READY): requirements-dev.txt $(READY)
	$(BIN)/python -m pip install --progress-bar off -r $(VENV)/requirements.txt -r requirements-dev.txt
	touch $(DEV_READY)

page/node_modules/.package-lock.json: page/package-lock.json
	@command -v npm > /dev/null || { echo 'make page needs Node.js 18 or later with npm (Debian: apt install nodejs npm)' >&2; exit 1; }
	npm ci --prefix page --ignore-scripts --no-audit --no-fund
	touch page/node_modules/.package-lock.json

# The peers of `make bench`, beside the packages of .venv, which are read where they are.
$(BENCH_READY): benchmarks/requirements.txt $(READY)
	rm -rf .venv-bench
	$(BIN)/python -m venv .venv-bench
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(.venv-bench/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	.venv-bench/bin/python -m pip install --progress-bar off --no-deps -r benchmarks/requirements.txt
	touch $(BENCH_READY)
