# `make` alone lists the targets. Requires only GNU make and Python 3.11 or newer.
PYTHON ?= python3
OLDEST_PYTHON ?= python3.12

VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
SHARED := -n 2 --dist loadfile --no-loadscope-reorder# names order the files with long tests first
PIP := -m pip --disable-pip-version-check install --quiet

.DEFAULT_GOAL := help
.PHONY: help env test proofs demo lint docs notebooks release test-oldest lock help-texts clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

env: $(VENV)/installed ## create .venv with the locked versions

test: env ## run the tests in two processes
	$(BIN)/python -m pytest $(SHARED)

proofs: env ## run the long confirmations that `make test` leaves out
	$(BIN)/python -m pytest $(SHARED) -m proof

demo: env ## generate four beating hearts and show them: demo-output/hearts.html
	rm -rf demo-output
	$(BIN)/cardiodit demo --output_dir demo-output

lint: env ## run linter, formatter (check only) and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: env ## build the documentation site, strictly: site/index.html
	$(BIN)/python $(PIP) -r requirements/lock-docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

notebooks: env ## execute the notebooks of examples/notebooks
	$(BIN)/python $(PIP) -e ".[train,notebooks]"
	$(BIN)/python examples/run_notebooks.py --check

release: env ## build the sdist and the wheel and check them: everything but the upload
	$(BIN)/python $(PIP) -e ".[release]"
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python benchmarks/release.py dist
	@echo "To publish: tag this commit, then $(BIN)/python -m twine upload dist/*"

test-oldest: $(OLDEST)/installed ## run the tests against the oldest supported versions (Python 3.12)
	$(OLDEST)/bin/python -m pytest $(SHARED)

# The stamp file is written last, so that an interrupted installation starts over. $(1) folder, $(2) Python, $(3) lock.
define install
	@$(2) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cardiodit needs Python 3.11 or newer; set PYTHON=/path/to/python3"; exit 1; }
	rm -rf $(1)
	$(2) -m venv $(1)
	$(1)/bin/python $(PIP) --upgrade pip
	$(1)/bin/python $(PIP) -r $(3)
	$(1)/bin/python $(PIP) --no-deps --editable .
	@touch $@
endef

$(VENV)/installed: requirements/lock.txt setup.py
	$(call install,$(VENV),$(PYTHON),$<)

$(OLDEST)/installed: requirements/lock-oldest.txt setup.py
	$(call install,$(OLDEST),$(OLDEST_PYTHON),$<)

# torch is locked, its CUDA libraries are not: each torch release pins exactly the ones it needs, and a CPU build
# of the same release needs none.
COMPILE = $(BIN)/uv pip compile --quiet --no-header --no-annotate --extra dev $(NO_CUDA) setup.py
NO_CUDA = $(foreach package,$(CUDA_PACKAGES),--no-emit-package $(package))
CUDA_PACKAGES = triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cublas-cu12 \
	nvidia-cuda-cupti nvidia-cuda-cupti-cu12 nvidia-cuda-nvrtc nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime \
	nvidia-cuda-runtime-cu12 nvidia-cudnn-cu12 nvidia-cudnn-cu13 nvidia-cufft nvidia-cufft-cu12 nvidia-cufile \
	nvidia-cufile-cu12 nvidia-curand nvidia-curand-cu12 nvidia-cusolver nvidia-cusolver-cu12 nvidia-cusparse \
	nvidia-cusparse-cu12 nvidia-cusparselt-cu12 nvidia-cusparselt-cu13 nvidia-nccl-cu12 nvidia-nccl-cu13 \
	nvidia-nvjitlink nvidia-nvjitlink-cu12 nvidia-nvshmem-cu12 nvidia-nvshmem-cu13 nvidia-nvtx nvidia-nvtx-cu12

lock: env ## update both lock files
	$(BIN)/python $(PIP) uv
	echo 'torch==2.13.0' > requirements/.torch
	$(COMPILE) --upgrade --universal --python-version 3.11 --constraint requirements/.torch -o requirements/lock.txt
	echo 'torch==2.10.0' > requirements/.torch
	$(COMPILE) --upgrade --python-version 3.12 --resolution lowest-direct --constraint requirements/.torch \
		-o requirements/lock-oldest.txt
	rm requirements/.torch
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --universal --python-version 3.11 --upgrade --extra docs \
		--constraint requirements/lock.txt --no-emit-package torch $(NO_CUDA) setup.py -o requirements/lock-docs.txt

help-texts: env ## update the stored --help of the training stages
	$(BIN)/python -m cardiodit.training.harness.help_texts

clean: ## remove environments, caches and the output of the demo
	rm -rf $(VENV) $(OLDEST) build dist site demo-output .mypy_cache .ruff_cache .pytest_cache src/*.egg-info *.egg-info
