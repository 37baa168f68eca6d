# make demo, make test: from a clone to a result. Everything lives in .venv, and in .sdk the official
# SDK's environments.
#
# torch is pinned in constraints.txt. pip takes a CPU build where it finds one (a wheel in a
# directory given by PIP_FIND_LINKS, or a package index given as TORCH_INDEX, for example PyTorch's
# own CPU index); otherwise it downloads the CUDA build, which is some gigabytes larger.

VENV ?= .venv
PYTHON ?= python3
TORCH_INDEX ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
SOURCES := client engine kernels bench examples tests

# Versions of the official SDK, each in an environment of its own under .sdk: the oldest that is
# supported and the newest are always tested, those between by make sdk-all test-sdk. Beside the
# newest lives Weft, for the tests of the local twin.
SDK_OLDEST := 0.28.1
SDK_BETWEEN := 0.30.4 0.33.1 0.36.0
SDK_NEWEST := 0.38.0
SDK_PIP := -m pip --disable-pip-version-check install -q --no-compile \
	-c constraints.txt -c tests/sdk/constraints.txt

# The oldest Triton that is supported, in an environment of its own that borrows the rest from VENV.
# `make test` compiles a variant of each kind of kernel with the newest; every variant of the
# dispatch table takes ten to twenty minutes of two cores: make kernels, make kernels-oldest.
TRITON_OLDEST := 3.6.0

.PHONY: demo test test-sdk sdk sdk-all check format install mutants bench-quick bench gpu clean
.PHONY: kernels kernels-oldest

demo: install
	$(BIN)/weft demo

test: install sdk
	$(BIN)/pytest -q
	$(MAKE) test-sdk

test-sdk: install sdk
	@set -e; for pytest in .sdk/*/bin/pytest; do \
		echo "$$pytest tests/sdk"; WEFT=$(BIN)/weft $$pytest -q tests/sdk; \
	done

check: install
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

mutants: install
	$(BIN)/python tests/helpers/mutants.py

bench-quick: install
	$(BIN)/python bench/quick.py

bench: install
	$(BIN)/python bench/train_step.py
	$(BIN)/python bench/protocol.py
	$(BIN)/python bench/control_plane.py
	$(BIN)/python bench/fallback.py
	$(BIN)/python bench/files.py
	$(BIN)/python bench/fork.py
	$(BIN)/python bench/pictures.py

# Tests and benches on a CUDA device, or nothing where there is none: make gpu PART=tests, or
# kernels, train, sample.
gpu: install
	$(BIN)/python bench/gpu.py $(PART:%=--part %)

kernels: install
	$(BIN)/python bench/kernel_resources.py

kernels-oldest: .triton/$(TRITON_OLDEST)/.installed
	.triton/$(TRITON_OLDEST)/bin/python bench/kernel_resources.py --result kernel_resources_oldest

install: $(VENV)/.installed

$(VENV)/.installed: constraints.txt pyproject.toml
	@echo "Installing into $(VENV): about 400 MB to download with a CPU build of torch, 3.5 GB with"
	@echo "a CUDA build; one to five minutes on a usual line."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e '.[engine,gateway,dev,plot]'
	@touch $@

sdk: .sdk/$(SDK_OLDEST)/.installed .sdk/$(SDK_NEWEST)/.installed

sdk-all: sdk $(SDK_BETWEEN:%=.sdk/%/.installed)

.sdk/%/.installed: constraints.txt tests/sdk/constraints.txt tests/sdk/cookbook.txt
	test -x .sdk/$*/bin/python || $(PYTHON) -m venv .sdk/$*
	.sdk/$*/bin/python $(SDK_PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	.sdk/$*/bin/python $(SDK_PIP) tinker==$* pytest pytest-timeout
	$(if $(filter $*,$(SDK_NEWEST)),.sdk/$*/bin/python $(SDK_PIP) -r tests/sdk/cookbook.txt)
	$(if $(filter $*,$(SDK_NEWEST)),.sdk/$*/bin/python $(SDK_PIP) pytest-xdist -e '.[testing]')
	$(if $(filter $*,$(SDK_NEWEST)),.sdk/$*/bin/python $(SDK_PIP) --no-deps tinker-cookbook==0.6.1)
	@touch $@

.triton/%/.installed: $(VENV)/.installed
	test -x .triton/$*/bin/python || $(PYTHON) -m venv .triton/$*
	.triton/$*/bin/python -m pip --disable-pip-version-check install -q triton==$*
	echo "import site; site.addsitedir('$$(echo $(abspath $(VENV))/lib/python3*/site-packages)')" \
		> $$(echo .triton/$*/lib/python3*/site-packages)/borrowed.pth
	@touch $@

clean:
	rm -rf $(VENV) .sdk .triton build dist *.egg-info
