# make demo, make test: from a clone to a result. Everything lives in .venv.
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

.PHONY: demo test check format install mutants bench-quick bench gpu clean

demo: install
	$(BIN)/weft demo

test: install
	$(BIN)/pytest -q

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

gpu: install
	$(BIN)/pytest -q -m gpu

install: $(VENV)/.installed

$(VENV)/.installed: constraints.txt pyproject.toml
	@echo "Installing into $(VENV): about 400 MB to download with a CPU build of torch, 3.5 GB with"
	@echo "a CUDA build; one to five minutes on a usual line."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e '.[engine,gateway,dev,plot]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
