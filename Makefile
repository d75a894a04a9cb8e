# Everything runs in .venv. `make demo` installs what users get, the other targets also what developers need.
# An installation is repeated when pyproject.toml or constraints.txt is newer than its stamp.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c "" 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
CORES ?= $(shell nproc)
QUICK ?=
SIZE ?= full
INSTALL := PYTHONWARNINGS=ignore:::setuptools.command.editable_wheel $(BIN)/python -m pip install --quiet -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

.PHONY: demo test slow lint lowest bench bench-masks bench-peers survival painter evidence table3 docs notebook clean

demo: .venv/.installed
	$(BIN)/attn2mask demo --size $(SIZE) --out runs/demo$(if $(filter small,$(SIZE)),-small)

test: .venv/.developer
	$(PYTEST) -n $(CORES) --dist worksteal

slow: .venv/.developer
	$(PYTEST) -m slow

lint: .venv/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The fast tests with the lowest versions of the direct dependencies, in an environment of their own.
lowest:
	test -x runs/lowest/bin/python || $(PYTHON) -m venv runs/lowest
	runs/lowest/bin/python -m pip install --quiet uv
	runs/lowest/bin/uv pip install --quiet --compile-bytecode --python runs/lowest --resolution lowest-direct -e '.[dev]'
	OMP_NUM_THREADS=1 runs/lowest/bin/python -m pytest -q -n $(CORES) --dist worksteal

bench: .venv/.developer
	PYTHONPATH=tests $(BIN)/python -m bench $(if $(QUICK),--quick)

# The presets of rules on a folder of images with masks.
bench-masks: .venv/.installed
	@test -n "$(DATASET)" || { echo "name a folder of images with masks: make bench-masks DATASET=VOCdevkit/VOC2012"; exit 1; }
	$(BIN)/attn2mask evaluate-rules --dataset "$(DATASET)" --out runs/rules.json

# DAAM beside ours, in an environment of its own, with libraries of the time when it was released.
bench-peers: .venv/.developer
	test -x runs/daam/bin/python || $(PYTHON) -m venv runs/daam
	runs/daam/bin/python -m pip install --quiet torch==2.13.0
	runs/daam/bin/python -m pip install --quiet daam==0.2.0 'huggingface_hub==0.23.5' 'numpy<2'
	PYTHONPATH=tests runs/daam/bin/python -m bench.peers

survival: .venv/.developer
	$(BIN)/python tests/survival.py

painter: .venv/.developer
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(CORES) training/pretraining/painter_training.py --output-dir runs/painter
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(CORES) training/pretraining/referee_training.py --painter runs/painter/pipeline

evidence: .venv/.developer
	$(BIN)/python training/experiments/painter_quality.py --out runs/evidence
	$(BIN)/python training/experiments/ablation.py --out runs/ablation

# A small CLIP that is read directly, beside the painter's attention and networks that were trained on it.
table3: .venv/.developer
	$(BIN)/python training/experiments/table3.py --out runs/table3 --results docs/results.md

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "attn2mask needs Python 3.11 or newer; set PYTHON=... to one"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	mkdir -p .venv/source && ln -sfn ../.. .venv/source/attn2mask
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) -e .
	@touch $@

.venv/.developer: .venv/.installed
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 13))' || command -v c++ >/dev/null || \
	  { echo "The tests need a C++ compiler (g++ or clang++) for pydensecrf2, the reference of the dense CRF"; exit 1; }
	$(INSTALL) -e '.[dev]'
	@touch $@

# The page of the Python interface, from the docstrings.
docs: .venv/.installed
	$(BIN)/python docs/api_page.py

# The notebook with new outputs. It takes some minutes.
notebook: .venv/.developer
	$(BIN)/python docs/notebook.py

clean:
	rm -rf .venv build dist *.egg-info runs
