# The door. `make help` lists what it opens; each target sets up what it needs first.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
ARGS ?=
# Where the environment forbids Python to keep what it compiled, each process compiles all of torch again: two thirds
# of the time of `import torch`, in every kernel and every process that the tests start.
unexport PYTHONDONTWRITEBYTECODE
# TORCH=cpu asks, when the environment is first set up, for torch without CUDA's libraries, a much smaller download.
TORCH ?=
ifneq ($(filter-out cpu,$(TORCH)),)
$(error TORCH=$(TORCH) is not known; say TORCH=cpu, or leave it out for the ordinary build)
endif

# Two workers for two cores, each with one thread so that they do not fight; a whole file goes to one of them, because
# the cells of a chapter share a kernel. `make test` has a third, for while the others wait for kernels and browsers.
# ARGS="-n 0" runs one test after another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Set-up depends on the dependencies alone: their text is kept in .stamp/, which is touched only when it changes.
DEPENDENCIES := .stamp/dependencies
SETUP := $(VENV)/.ready
BENCH := $(VENV)/.ready-bench

.PHONY: help setup toy lab classroom book test test-all lint format bench clean FORCE

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## *' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "With any of them, TORCH=cpu: a smaller torch, without CUDA. It counts when .venv is first set up; later, only after make clean."

setup: $(SETUP)  ## set up .venv only

toy: $(SETUP)  ## pre-train and probe the toy and its pixel-predicting twin; ARGS="--data folder:my/pictures" for your own
	$(BIN)/python -m toy_ijepa $(ARGS)

lab: $(SETUP)  ## open the chapters in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=chapters $(ARGS)

classroom: $(SETUP)  ## make the students' release of the exercises with nbgrader, in classroom/
	$(BIN)/python chapters/exercises/classroom.py $(ARGS)

book: $(SETUP)  ## build the book for the web in site/; ARGS="-E" builds every page anew
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees -c book $(ARGS) . site
	@echo "site/ is the book. To read it: python3 -m http.server --directory site, then http://localhost:8000"

test: $(SETUP)  ## every package and chapter the quick way, what to run before a commit; ARGS="-k masking" for some
	IJEPA_QUICK=1 $(PYTEST) -n 3 -m "not slow" $(ARGS)

test-all: $(SETUP)  ## every test, and every chapter with its whole trainings (IJEPA_HURRY=1: shorter ones)
	$(PYTEST) $(ARGS)

lint: $(SETUP)  ## check code and notebooks with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(SETUP)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH)  ## time the toy's training step, part by part, beside lightly's
	$(BIN)/python -m toy_ijepa.bench $(ARGS)

clean:  ## remove the environment (runs and pictures stay)
	rm -rf $(VENV) .stamp

$(DEPENDENCIES): FORCE
	@mkdir -p .stamp
	@{ sed -n '/^requires-python/p; /^dependencies/,/^]/p; /^\[project.optional-dependencies\]/,/^$$/p' pyproject.toml; cat constraints.txt; } > $@.new
	@cmp -s $@.new $@ || cp $@.new $@
	@rm -f $@.new

$(SETUP): $(DEPENDENCIES)
	$(call install,dev)
	@touch $@

$(BENCH): $(SETUP)
	$(call install,dev,bench)
	@touch $@

comma := ,
what = --constraint constraints.txt --editable ".[$(1)$(if $(2),$(comma)$(2))]"
ifdef UV
environment = @test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
cpu_uv := $(UV)
have_uv := true
plain := $(UV) pip install --quiet --python $(BIN)/python
else
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
endef
plain := $(BIN)/python -m pip install --quiet --disable-pip-version-check
cpu_uv := $(BIN)/uv
have_uv := $(plain) uv
endif

ifeq ($(TORCH),cpu)
# uv knows where the CPU builds lie; without it, pip fetches it into the environment. They lie apart from the other
# packages, and not every network reaches them: asked first, with little patience and nothing installed.
patience := UV_HTTP_CONNECT_TIMEOUT=5 UV_HTTP_TIMEOUT=10 UV_HTTP_RETRIES=1
cpu := $(cpu_uv) pip install --quiet --python $(BIN)/python --torch-backend cpu
define install
	$(environment)
	@if { $(have_uv) && $(patience) $(cpu) --dry-run --no-deps --constraint constraints.txt torch torchvision; } 2>/dev/null; then \
		echo "Installing with the CPU build of torch."; $(cpu) $(what); \
	else \
		echo "The CPU build of torch cannot be had from here; installing the ordinary build, which runs on a CPU as well."; \
		$(plain) $(what); \
	fi
endef
else
define install
	$(environment)
	$(plain) $(what)
endef
endif
