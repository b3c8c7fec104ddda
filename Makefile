# Everything goes through here; `make help` lists it. Nothing but make and Python 3.11 or newer has to be there first.
#
#   make figures PROFILE=ci       measure next to nothing, into build/ci: to see that all of it works
#   make sweep PROFILE=quick      measure less
#   make sweep SCHEDULER=tcp://host:8786   measure on the workers of a Dask cluster (SHARE=1: alike ones share the points)
#   make html MACHINE=amd-epyc-znver5-2c-e3a5   the site of another machine's chapters
#   make PYTHON=python3.12 ...    build .venv with another Python

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# An active environment that has this checkout's rnnpar is used as it is; else .venv is made, and kept up to date.
# (-I: the checkout itself, which is the current folder, must not count as installed.)
HAS_RNNPAR := import importlib.util as u, os, sys; s = u.find_spec("rnnpar"); \
  sys.exit(not (s and s.origin and u.find_spec("papermill") and os.path.samefile(os.path.dirname(s.origin), "rnnpar")))
# (subst, not filter-out, and quotes: there may be spaces in its path.)
ACTIVE := $(or $(if $(subst $(CURDIR)/.venv,,$(VIRTUAL_ENV)),$(VIRTUAL_ENV)),$(CONDA_PREFIX))
ifneq ($(ACTIVE),)
  ifneq ($(shell '$(ACTIVE)/bin/python' -I -c '$(HAS_RNNPAR)' 2>/dev/null && echo yes),yes)
    ACTIVE :=
  endif
endif
RUN := $(if $(ACTIVE),'$(ACTIVE)/bin/python',.venv/bin/python)
READY := $(if $(ACTIVE),,.venv/.ready)
CLUSTER := $(if $(ACTIVE),,.venv/.cluster)
DEV := $(if $(ACTIVE),,.venv/.dev)
INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt -e

SOURCES := $(shell find rnnpar -name '*.py' -o -name '*.yaml' -o -name '*.cuh')
CODE := rnnpar tests data notebooks/*.ipynb notebooks/*.py
CHAPTERS := $(wildcard notebooks/[0-9][0-9]*.ipynb)
RESULTS := $(wildcard data/results/*/*.jsonl)

.PHONY: figures test test-ui check check-gpu peers mpi in-time lab sweep cluster html clean help

ifeq ($(PROFILE),ci)
figures: $(READY)
	$(RUN) -m rnnpar.study.figures --profile ci --scratch build/ci
else
figures: figures/.drawn  ## measure this machine if it has no results yet, then draw every figure
endif

# The stamp is not committed, so a fresh clone draws; whether it measures, the results decide, not their dates.
figures/.drawn: $(READY) $(SOURCES) $(CHAPTERS) notebooks/sweep.ipynb $(RESULTS)
	$(RUN) -m rnnpar.study.figures --profile $(or $(PROFILE),quick)
	@mkdir -p figures && touch $@

test: check  ## the checks and all tests
	$(RUN) -m pytest

# Needs a Chromium or Chrome, and says so where there is none (Debian, Ubuntu: apt-get install chromium).
test-ui: html  ## the notebooks and the site in a browser, as a reader would use them
	$(RUN) $(INSTALL) '.[study,dev,site,ui]'
	$(RUN) -m pytest -o python_files='ui_*.py' tests/ui

check: $(DEV)  ## ruff, and the form of the source notebooks
	$(RUN) -m ruff check $(CODE)
	$(RUN) -m ruff format --check $(CODE)
	$(RUN) -m rnnpar.study.notebooks --check

sweep: $(if $(SCHEDULER),$(CLUSTER),$(READY))  ## measure this machine, all that can run on it (half an hour); continues where it was stopped
	$(RUN) -m rnnpar.study.sweep --profile $(or $(PROFILE),full) $(if $(SCHEDULER),--scheduler '$(SCHEDULER)') $(if $(SHARE),--share)

cluster: $(CLUSTER)  ## start a Dask cluster of this machine alone, to try the sweep over machines with
	$(RUN) -m rnnpar.study.cluster

peers: $(READY)  ## measure what a user would pick instead (PyTorch, ONNX Runtime, OpenVINO, JAX) beside ours
	$(RUN) $(INSTALL) '.[study,mpi,peers]'
	$(RUN) -m rnnpar.study.sweep --profile peers

in-time: $(READY)  ## measure the methods that are parallel in time, for chapter 07 (two minutes)
	$(RUN) -m rnnpar.study.sweep --profile in_time

mpi: $(READY)  ## measure what ranks cost: messages, and mpi's strategies beside those of threads (three minutes)
	$(RUN) -m rnnpar.study.sweep --profile mpi

# On a machine with a GPU, whatever Python is there: nothing is installed first. PYTHON=... names another.
CHECKER := $(or $(filter-out default undefined,$(if $(filter command environment,$(origin PYTHON)),$(PYTHON))),$(if \
  $(ACTIVE),'$(ACTIVE)/bin/python'),$(wildcard .venv/bin/python),python3)
check-gpu:  ## on a machine with a GPU: check every GPU method there, then measure; CHECK='--minutes 9 --only sweep'
	$(CHECKER) -m rnnpar.study.check_gpu $(CHECK)

# The kernel named python3 is this environment's, whatever kernels the user has installed elsewhere.
lab: $(READY)  ## open the notebooks in JupyterLab
	JUPYTER_PREFER_ENV_PATH=1 $(RUN) -m jupyterlab $(LAB_OPTIONS) $(firstword $(wildcard notebooks/00*.ipynb) notebooks)

html: $(DEV)  ## the executed chapters as one site, in build/html: open index.html, no network needed
	rm -rf build/html build/doctrees
	$(if $(MACHINE),RNNPAR_MACHINE='$(MACHINE)') $(RUN) -m sphinx -n -W -q -d build/doctrees notebooks build/html
	@echo "build/html/index.html opens in any browser, with no network"

clean:  ## remove what can be made again; never data/results
	rm -rf build .pytest_cache .ruff_cache figures/.drawn
	find notebooks -name '*.failed.ipynb' -delete -o -name '*.running.ipynb' -delete

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 11

# Looked for only when it is needed, so that `make help` works without any Python.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.venv/.ready: pyproject.toml constraints.txt
	@if [ -z '$(PYTHON)' ]; then \
	  echo "rnnpar needs Python 3.11 or newer, and python3 here is $$(python3 -V 2>&1): install one," \
	       "or name it, as in make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "rnnpar needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0])'
	@[ -x .venv/bin/python ] || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	@echo "installing what constraints.txt pins into .venv (about 0.7 GB)"
	.venv/bin/python $(INSTALL) '.[study,mpi]' --no-compile
	@.venv/bin/python -m compileall -qq -j 0 -x '/tests?/' .venv/lib || true  # as pip would, but on all cores
	@touch $@

# A sweep over machines, tests and the site have packages of their own, which figures do without.
.venv/.cluster: .venv/.ready
	.venv/bin/python $(INSTALL) '.[study,mpi,cluster]'
	@touch $@

.venv/.dev: .venv/.ready
	.venv/bin/python $(INSTALL) '.[study,mpi,cluster,dev,site]'
	@touch $@
