# `make demo`, `make server`, `make bench` and `make test` need Python 3.11 (with venv) and this folder; everything else they set up themselves.

PYTHON ?= python3
DEMO := .demo
BIN := .venv/bin
READY := .venv/ready
BENCH_READY := .venv-bench/ready

# the main job on your own: make demo CHECKPOINT=last.ckpt DATA=leaves NON_PLANTS=others UNSEEN_PLANTS=more
ifneq ($(origin CHECKPOINT),$(origin DATA))
$(error CHECKPOINT and DATA go together: make demo CHECKPOINT=last.ckpt DATA=leaves [NON_PLANTS=others] [UNSEEN_PLANTS=more])
endif
CHECKPOINT ?= $(DEMO)/demo.ckpt
DATA ?= $(DEMO)/data
NON_PLANTS ?= $(if $(filter $(DEMO)/data,$(DATA)),$(DEMO)/non_plants)
UNSEEN_PLANTS ?=
NAME ?= plant-disease
OUT ?= public/models
POLICY ?= gates.toml
# more options for `make bench`, such as BENCH=--quick
BENCH ?=
PORT ?= 5000

export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_TRACKING_URI ?= sqlite:///mlflow.db
export PYTHONUNBUFFERED := 1

.PHONY: demo server bench test check setup

demo: setup
ifeq ($(CHECKPOINT),$(DEMO)/demo.ckpt)
	python -m examples.drawn_leaves $(DEMO)
endif
	mlflow run . --env-manager local -P checkpoint='$(CHECKPOINT)' -P data='$(DATA)' -P non_plants='$(NON_PLANTS)' \
	  -P unseen_plants='$(UNSEEN_PLANTS)' -P name='$(NAME)' -P out='$(OUT)' -P policy='$(POLICY)'
	python -m mlflow_plugins.cli show --name '$(NAME)' --data '$(DATA)' --non-plants '$(NON_PLANTS)'

# The demo's database behind the gated registry, and MLflow's UI on it.
server: setup
	mlflow server --host 127.0.0.1 --port $(PORT) --backend-store-uri '$(MLFLOW_TRACKING_URI)' \
	  --registry-store-uri 'plantmodels:$(MLFLOW_TRACKING_URI)' --artifacts-destination mlartifacts

# Ours beside its peers, and what everything costs: make bench CHECKPOINT=last.ckpt DATA=leaves OUT=public/models
bench: $(BENCH_READY)
	.venv-bench/bin/python -m benchmarks --checkpoint '$(CHECKPOINT)' --data '$(DATA)' --bundle '$(OUT)' $(BENCH)

test: setup
	python -m pytest -n 2 --dist loadfile

check: setup
	ruff format --check
	ruff check
	mypy
	python -m pytest -n 2 --dist loadfile

setup: $(READY)

# The pins are the list under `pip:` in conda.yaml, and only there. MLflow finds the gated registry by this project's
# entry point, so the project is installed as well.
$(READY): conda.yaml pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed, PYTHON=$(PYTHON) is " + sys.version)'
	rm -rf .venv
	$(PYTHON) -m venv .venv
	sed -n 's/^      - //p' conda.yaml > .venv/requirements.txt
	$(BIN)/python -m pip install --progress-bar off -r .venv/requirements.txt
	$(BIN)/python -m pip install --progress-bar off --no-deps --editable .
	touch $(READY)

# The peers of `make bench`, beside the packages of .venv, which are read where they are.
$(BENCH_READY): benchmarks/requirements.txt $(READY)
	rm -rf .venv-bench
	$(BIN)/python -m venv .venv-bench
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > .venv-bench/lib/python3.11/site-packages/project.pth
	.venv-bench/bin/python -m pip install --progress-bar off --no-deps -r benchmarks/requirements.txt
	touch $(BENCH_READY)
