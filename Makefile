# The door. `make help` lists what it opens; each target sets up what it needs first.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
ARGS ?=

# Two workers for two cores, each with one thread so that they do not fight; a whole file goes to one of them, because
# the cells of a chapter share a kernel. ARGS="-n 0" runs one test after another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Set-up depends on the dependencies alone: their text is kept in .stamp/, which is touched only when it changes.
DEPENDENCIES := .stamp/dependencies
SETUP := $(VENV)/.ready
BENCH := $(VENV)/.ready-bench

.PHONY: help toy lab classroom test test-all lint format bench clean FORCE

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## *' '{printf "  make %-10s %s\n", $$1, $$2}'

toy: $(SETUP)  ## pre-train and probe the toy on embedded pictures, about eight minutes; ARGS="--data cifar10 --minutes 10" for more
	$(BIN)/python -m toy_ijepa $(ARGS)

lab: $(SETUP)  ## open the chapters in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=chapters $(ARGS)

classroom: $(SETUP)  ## make the students' release of the exercises with nbgrader, in classroom/
	$(BIN)/python chapters/exercises/classroom.py $(ARGS)

test: $(SETUP)  ## every package and chapter the quick way, what to run before a commit; ARGS="-k masking" for some
	IJEPA_QUICK=1 $(PYTEST) -m "not slow" $(ARGS)

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
ifdef UV
define install
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[$(1)$(if $(2),$(comma)$(2))]"
endef
else
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$(1)$(if $(2),$(comma)$(2))]"
endef
endif
