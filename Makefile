# `make help` lists the targets. Each makes what it needs, the environment included.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUN_READY := $(VENV)/.ready
DEV_READY := $(VENV)/.ready-dev

# make paper
TASK ?= jigsaw
RUNS ?= runs/paper/$(TASK)
POLICY ?= gpt2
DATA ?=
REWARD ?=
ARGS ?=
SFT_ARGS ?=
RA_ARGS ?=
# make compare
SEEDS ?= 1

.PHONY: help quickstart test check audit format paper compare clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | awk -F'|' '{printf "  make %-11s %s\n", $$1, $$2}'
	@echo
	@echo "  make paper takes TASK=$$(cd configs && ls *.yaml 2>/dev/null | sed 's/\.yaml$$//' | paste -sd'|' || true) (default $(TASK)),"
	@echo "    RUNS=folder (runs/paper/TASK), POLICY=hub id or folder (gpt2), DATA=folder (hub), REWARD=folder (the config's hub id),"
	@echo "    ARGS='...' for every command, SFT_ARGS='...' for the SFT fit, RA_ARGS='...' for the RA-RLHF fit and the tests."
	@echo "    Stopped? The same command goes on from the last checkpoint. A finished stage is run again once its folder is deleted."

quickstart: $(RUN_READY) ## SFT, RLHF, RA-RLHF and test on synthetic data, offline, 1-2 minutes on 2 cores
	$(PY) -m lightning_rarlhf.quickstart

test: $(DEV_READY) ## all tests, offline; ARGS='-k risk -x' goes to pytest
	$(PY) -m pytest -n 2 $(ARGS)

check: $(DEV_READY) ## lint, format, types, that every shipped YAML and every command of the documentation parses, licences
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) .ci/parse_configs.py
	$(PY) .ci/audit.py

audit: $(DEV_READY) ## licences of the pinned packages, and their known vulnerabilities where a network is
	$(PY) .ci/audit.py

format: $(DEV_READY) ## format the code and fix what the linter can fix
	$(PY) -m ruff check --fix --show-fixes . || true
	$(PY) -m ruff format .

clean: ## remove tool caches and build outputs; .venv and runs/ stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . \( -path ./$(VENV) -o -path ./runs -o -path ./.git \) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# ---- the environment -------------------------------------------------------------------------------------------------
# A stamp names the checkout it was made for: an environment that was copied, moved or lost its interpreter has no valid
# stamp and is installed again. `.installing` is there only if pip was killed: then the environment is made afresh.

export PIP_DISABLE_PIP_VERSION_CHECK := 1

ifneq ($(wildcard $(VENV)),)
$(shell [ "$$(cat $(RUN_READY) 2>/dev/null)" = "$(CURDIR)" ] && $(PY) -c '' 2>/dev/null || rm -f $(RUN_READY) $(DEV_READY))
endif

FIND_PYTHON = for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -1); expected Python 3.11 or newer with the venv module;" \
	    "install one (Debian, Ubuntu: python3 and python3-venv) or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi

# pip, with a mark that outlives it only if it is killed
INSTALL = touch $(VENV)/.installing; status=0; $(PY) -m pip install $(1) || status=$$?; rm -f $(VENV)/.installing; \
	[ $$status -eq 0 ] || { echo "make: the pinned packages could not be installed; see pip's message above" >&2; exit $$status; }

$(RUN_READY): requirements.txt constraints.txt pyproject.toml
	@if [ -e $(VENV)/.installing ] || ! $(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  $(FIND_PYTHON); \
	  echo "making $(VENV) with $$("$$python" --version); the pinned packages follow, which takes minutes the first time"; \
	  "$$python" -m venv --clear $(VENV); \
	fi
	@$(call INSTALL,-r requirements.txt -c constraints.txt)
	@$(call INSTALL,--quiet --no-deps --no-build-isolation -e .)
	@echo "$(CURDIR)" > $@

$(DEV_READY): $(RUN_READY) requirements-dev.txt
	@$(call INSTALL,-r requirements-dev.txt -c constraints.txt)
	@touch $@

# ---- the paper's recipe ----------------------------------------------------------------------------------------------
# SFT on the good class, RA-RLHF from and against that model, and the same test of both. Each stage's result is a file,
# so make knows what is done; a fit that was stopped goes on from its last checkpoint.

SFT := $(RUNS)/sft
RA := $(RUNS)/ra_rlhf
SFT_MODEL := $(SFT)/huggingface
RA_MODEL := $(RA)/huggingface
TRAIN := $(PY) train.py
DATA_ARGS = $(if $(DATA),--data.path '$(DATA)')
REWARD_ARGS = $(if $(REWARD),--model.reward.pretrained '$(REWARD)')
# A trial (ARGS="--trainer.fast_dev_run true") ends without an error and without an export.
REQUIRE = @test -f $@ || { echo "make: $@ was not written; a trial (fast_dev_run) leaves none, and a stopped fit goes on from its last checkpoint by the same command" >&2; exit 1; }

paper: $(SFT)/results.json $(RA)/results.json ## the paper's recipe for TASK, resumable: SFT, RA-RLHF from and against it, test
	@echo "SFT:     $(SFT)/results.json"
	@echo "RA-RLHF: $(RA)/results.json"

configs/%.yaml:
	@echo "make: TASK=$(TASK) needs $@, which is not there; one of:" \
	  "$$(ls configs/sft/*.yaml | xargs -n1 basename -s .yaml | paste -sd' ')" >&2; exit 1

$(SFT_MODEL)/config.json: | configs/sft/$(TASK).yaml $(RUN_READY)
	$(TRAIN) fit --config configs/sft/$(TASK).yaml --model.policy.pretrained '$(POLICY)' $(DATA_ARGS) \
	  --trainer.default_root_dir $(SFT) $(ARGS) $(SFT_ARGS) --ckpt_path auto
	$(REQUIRE)

$(RA_MODEL)/config.json: $(SFT_MODEL)/config.json | configs/$(TASK).yaml
	$(TRAIN) fit --config configs/$(TASK).yaml --model.policy.pretrained $(SFT_MODEL) $(DATA_ARGS) $(REWARD_ARGS) \
	  --trainer.default_root_dir $(RA) $(ARGS) $(RA_ARGS) --ckpt_path auto
	$(REQUIRE)

# KL is measured against the SFT model in both tests; the policy under test is what a user would load.
TEST = $(TRAIN) test --config configs/$(TASK).yaml --model.policy.pretrained $(1) --model.reference $(SFT_MODEL) \
	$(DATA_ARGS) $(REWARD_ARGS) --trainer.default_root_dir $(2) $(ARGS) $(RA_ARGS)

$(SFT)/results.json: $(SFT_MODEL)/config.json | configs/$(TASK).yaml
	$(call TEST,$(SFT_MODEL),$(SFT))
	$(REQUIRE)

$(RA)/results.json: $(RA_MODEL)/config.json | configs/$(TASK).yaml
	$(call TEST,$(RA_MODEL),$(RA))
	$(REQUIRE)

# ---- every method side by side ---------------------------------------------------------------------------------------
# lightning_rarlhf/compare/stages.py is the table of methods.

compare: $(RUN_READY) ## every method on TASK, then one report: SEEDS=3, POLICY=, DATA=, REWARD=, RUNS=, ARGS='--methods sft,rlhf'
	$(PY) -m lightning_rarlhf.compare --task $(TASK) --seeds $(SEEDS) --policy '$(POLICY)' $(if $(DATA),--data '$(DATA)') \
	  $(if $(REWARD),--reward '$(REWARD)') $(if $(filter file,$(origin RUNS)),,--runs '$(RUNS)') $(ARGS)
