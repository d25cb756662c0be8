# setup: a virtual environment with everything; demo, test, bench: set up and run. A user's own choice of torch:
#   make test TORCH='torch torchvision'                        the newest pair, CUDA included
#   make test CPU='--index-url https://download.pytorch.org/whl/cpu'   the CPU build from PyTorch's own index
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0 torchvision==0.28.0
CPU ?=
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -q --disable-pip-version-check

.PHONY: setup demo test check bench families study clean
setup: $(VENV)/.ready

# Written last, so that an interrupted install is redone. A torch that is there already (>= 2.4) is left alone. The plain
# torchvision of some indexes is built for CUDA and cannot be imported beside a CPU torch; 0.16.2 lacks that check.
# pip compiles what it installs, but not what it leaves in place.
$(VENV)/.ready: pyproject.toml Makefile
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -c 'import torch; assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4)' 2>/dev/null \
		|| $(PIP) $(TORCH) $(CPU) || $(PIP) 'torch>=2.4' torchvision
	$(PY) -c 'import torch; print("torch==" + torch.__version__.split("+")[0])' > $(VENV)/constraints.txt
	$(PIP) -c $(VENV)/constraints.txt -e '.[test]'
	$(PY) -m compileall -q adapterpack cli
	$(PY) -W ignore -c 'import timm' 2>/dev/null || { $(PIP) requests && $(PIP) --no-deps torchvision==0.16.2; }
	$(PY) -W ignore -c 'import timm, adapterpack' && touch $@

demo: setup
	$(PY) fixtures/demo.py

test: setup
	$(PY) -m pytest -q -n 2 --dist worksteal

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: setup
	$(PY) -c "import brotli, peft" 2>/dev/null || $(PIP) -c $(VENV)/constraints.txt -e '.[bench]'
	$(PY) -W ignore tests/bench/run.py $(BENCH)

# docs/backbones.md: which of timm's families take which method, by trying all of them
families: setup
	$(PY) -W ignore tests/bench/families.py

# BUDGET=small takes minutes, core two hours, full a day on two cores; it goes on where it was stopped
BUDGET ?= small
study: setup
	$(PY) -c "import matplotlib" 2>/dev/null || $(PIP) -c $(VENV)/constraints.txt -e '.[study]'
	$(PY) -W ignore study/run.py --budget $(BUDGET)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
