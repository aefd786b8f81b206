# `make help` lists the targets. The first one sets everything up; later ones redo only what has changed.

# The environment to use. One that exists is used as it is, with the torch in it: make test VENV=/path/to/environment
VENV ?= .venv
# Makes that environment. If this Python has torch, the environment shares it.
PYTHON ?= python3
# What pip installs where there is no torch yet; on Linux this may be the build with CUDA, several GB.
TORCH ?= torch==2.13.0
# More arguments for pytest: make test ARGS="-k parity -x"
ARGS ?=
# Where `make bench` writes what it measured, run by run; what it has measured before it replaces.
RESULTS ?= runs/bench.json
# What `make sanitize` runs.
SANITIZE_TESTS ?= tests/kernels tests/modules/test_parity.py tests/modules/test_written_cells.py

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.customlstm-installed
SWITCHES := $(VENV)/.customlstm-switches
LIBRARY := customlstm/_C.json

.DELETE_ON_ERROR:
.PHONY: help demo test install bench lint sanitize cuda-check gpu-check instructions wheel sdist clean force

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(LIBRARY)  ## train a character model on real text with an LSTM that nn.LSTM cannot run
	$(PY) examples/char_lm.py --demo

test: $(LIBRARY)  ## run the tests
	$(PY) -m pytest tests -q -n auto --dist loadscope $(ARGS)

install: $(LIBRARY)  ## set up the environment and build the kernels in place
	$(PY) -m customlstm

bench: $(LIBRARY)  ## measure against nn.LSTM and plain PyTorch, write RESULTS and print the report
	$(PY) -m pytest benchmarks -q --keep=$(RESULTS) $(ARGS)
	$(PY) -m benchmarks.report $(RESULTS)

instructions: $(LIBRARY)  ## count the instructions of three shapes, with valgrind: ARGS="--compare FILE"
	$(PY) -m benchmarks.instructions $(ARGS)

lint: $(INSTALLED)  ## check the Python code with ruff
	$(PY) -m ruff check .

sanitize: $(INSTALLED)  ## run the kernel tests under AddressSanitizer and UBSan, once for each instruction set
	$(PY) tests/native/sanitize.py $(SANITIZE_TESTS) $(ARGS)

# Needs no environment: any Python compiles, and one that has torch with CUDA links as well. On a busy machine:
# ARGS="--jobs 1 --no-link --archs 90a"
cuda-check:  ## compile every CUDA kernel and link them, without a GPU; nvcc is needed
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) tests/native/cuda_check.py $(ARGS)

# With the Python that has torch for the GPU; installs nothing, since such a machine may have no network.
gpu-check:  ## build for the GPU here, test, sanitize and benchmark against cuDNN; results into RESULTS_DIR
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m benchmarks.gpu_check

wheel: $(INSTALLED)  ## build a wheel into dist/
	rm -rf build/lib build/lib.*
	$(PY) -c 'import build_backend; print(build_backend.build_wheel("dist"))'

sdist: $(INSTALLED)  ## build a source archive into dist/
	$(PY) -c 'import build_backend; print(build_backend.build_sdist("dist"))'

clean:  ## remove what was built; the environment stays
	rm -rf build dist customlstm.egg-info customlstm/_C.*

# Python side: the environment, torch, the tools, and the package as an editable install, which compiles nothing.
$(INSTALLED): pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $$($(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages) $(VENV)
	$(PY) -c 'import torch' 2>/dev/null || $(PY) -m pip install '$(TORCH)'
	$(PY) -m pip install 'setuptools>=77' torch  # torch: some versions of it bound that of setuptools
	CUSTOMLSTM_NO_EXTENSION=1 $(PY) -m pip install --no-build-isolation --editable '.[dev]'
	touch $@

# Compiled side. Folders are prerequisites too, so that a file which was removed counts as a change; ninja then
# compiles what is out of date and no more.
$(LIBRARY): $(shell find csrc) setup.py $(SWITCHES) | $(INSTALLED)
	$(PY) setup.py build_ext --inplace

# Changes only when a build switch does.
$(SWITCHES): force | $(INSTALLED)
	@values='$(foreach name,DEBUG FORCE_CUDA CUSTOMLSTM_NO_CUDA TORCH_CUDA_ARCH_LIST CXX,$(name)=$($(name)))'; \
	echo "$$values" | cmp -s - $@ || echo "$$values" > $@
