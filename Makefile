# Everything runs in .venv, which is made once: the stamp is newer than what it was made from, or it is made again.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
CORES ?= $(shell nproc)
QUICK ?=

.PHONY: demo test slow lint bench bench-peers survival painter evidence clean

demo: $(STAMP)
	$(BIN)/attn2mask demo --out runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest -q

slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m bench $(if $(QUICK),--quick)

# DAAM beside ours, in an environment of its own, with the libraries of its day.
bench-peers: $(STAMP)
	test -x runs/daam/bin/python || $(PYTHON) -m venv runs/daam
	runs/daam/bin/python -m pip install --quiet torch==2.13.0
	runs/daam/bin/python -m pip install --quiet daam==0.2.0 'huggingface_hub==0.23.5' 'numpy<2'
	PYTHONPATH=tests runs/daam/bin/python -m bench.peers

survival: $(STAMP)
	$(BIN)/python tests/survival.py

painter: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(CORES) training/painter.py --output-dir runs/painter
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(CORES) training/referee.py --painter runs/painter/pipeline

evidence: $(STAMP)
	$(BIN)/python training/evidence.py --out runs/evidence
	$(BIN)/python training/ablation.py --out runs/ablation

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "attn2mask needs Python 3.11 or 3.12; set PYTHON=... to one of them"; exit 1; }
	@command -v c++ >/dev/null || { echo "attn2mask needs a C++ compiler (g++ or clang++) for pydensecrf, its tests' reference"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore:::setuptools.command.editable_wheel \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,preview]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info runs
