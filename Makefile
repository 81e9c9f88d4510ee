# `make demo` and `make test` need Python 3.11 (with venv) and this folder; everything else they set up themselves.

PYTHON ?= python3
DEMO := .demo
BIN := .venv/bin
READY := .venv/ready

# the main job on your own: make demo CHECKPOINT=last.ckpt DATA=leaves NON_PLANTS=others
ifneq ($(origin CHECKPOINT),$(origin DATA))
$(error CHECKPOINT and DATA go together: make demo CHECKPOINT=last.ckpt DATA=leaves [NON_PLANTS=others])
endif
CHECKPOINT ?= $(DEMO)/demo.ckpt
DATA ?= $(DEMO)/data
NON_PLANTS ?= $(if $(filter $(DEMO)/data,$(DATA)),$(DEMO)/non_plants)
NAME ?= plant-disease
OUT ?= public/models
POLICY ?= gates.toml

export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_TRACKING_URI ?= sqlite:///mlflow.db
export PYTHONUNBUFFERED := 1

.PHONY: demo test check setup

demo: setup
ifeq ($(CHECKPOINT),$(DEMO)/demo.ckpt)
	python -m plantmodels.demo $(DEMO)
endif
	mlflow run . --env-manager local -P checkpoint='$(CHECKPOINT)' -P data='$(DATA)' -P non_plants='$(NON_PLANTS)' \
	  -P name='$(NAME)' -P out='$(OUT)' -P policy='$(POLICY)'
	python -m mlflow_plugins.cli show --name '$(NAME)' --data '$(DATA)' --non-plants '$(NON_PLANTS)'

test: setup
	python -m pytest

check: setup
	ruff format --check
	ruff check
	mypy
	python -m pytest

setup: $(READY)

# The pins are the list under `pip:` in conda.yaml, and only there.
$(READY): conda.yaml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed, PYTHON=$(PYTHON) is " + sys.version)'
	rm -rf .venv
	$(PYTHON) -m venv .venv
	sed -n 's/^      - //p' conda.yaml > .venv/requirements.txt
	$(BIN)/python -m pip install --progress-bar off -r .venv/requirements.txt
	touch $(READY)
