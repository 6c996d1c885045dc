# `make demo` and `make test` do all the set-up they need, once.

PYTHON ?= python3
BIN := .venv/bin
DEMO := demo

# As many tests at a time as there are cores, each on one of them, but no more than memory is likely
# to hold. Neighbours in a file share what they have trained; worksteal mostly leaves them together.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=8 --dist=worksteal

.PHONY: help install demo test test-all lint docs clean

help:
	@echo "make demo      train a small GAN on handwritten digits and show it (minutes, CPU or GPU)"
	@echo "make test      run the tests that are fast (minutes)"
	@echo "make test-all  run all tests, as CI does"
	@echo "make lint      check style, types and generated documents, as CI does"
	@echo "make docs      write the generated documents"
	@echo "make clean     remove the environment and the demo"

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.10 to 3.13 is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "python3 -m venv does not work here. Install it (Debian, Ubuntu: apt install python3-venv) and try again."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,lmdb]'
	@touch $@

$(DEMO)/digits.zip: | install
	$(BIN)/python dataset_tool.py --source=digits --dest=$@

$(DEMO)/digits.pt: $(DEMO)/digits.zip | install
	$(BIN)/python -m metrics.train_detector --data=$< --out=$@ --steps=600

demo: install $(DEMO)/digits.zip $(DEMO)/digits.pt
	$(BIN)/python train.py --data=$(DEMO)/digits.zip --outdir=$(DEMO)/runs --cfg=digits \
	  --coop-kimg=28 --kimg=40 --gamma=2 --aug=noaug --snap=5 --workers=1 \
	  --metrics=fid2k_full --detector=$(DEMO)/digits.pt
	$(BIN)/python generate.py --network=$$(ls -t $(DEMO)/runs/*/network-snapshot-*.pkl | head -1) \
	  --seeds=0-63 --grid --outdir=$(DEMO)/images
	@for kimg in 28 40; do \
	  echo; echo "After $$kimg kimg:"; \
	  $(BIN)/python calc_metrics.py --metrics=fid2k_full,classes2k_full --detector=$(DEMO)/digits.pt \
	    --network=$$(ls -td $(DEMO)/runs/*/ | head -1)network-snapshot-0000$$kimg.pkl > /dev/null || exit 1; \
	done
	@echo
	@echo "Open $$(ls -td $(DEMO)/runs/*/ | head -1)index.html (curves, pictures) and $(DEMO)/images/grid.png (64 new digits)."
	@echo "Next: the same with --coop-kimg=0, to see what the cooperative stage does; or your own images:"
	@echo "  $(BIN)/python dataset_tool.py --source=FOLDER --dest=mine.zip --width=64 --height=64 --transform=center-crop"
	@echo "  $(BIN)/python train.py --data=mine.zip --coop-kimg=100"

test: install
	$(PYTEST) -m "not slow"

test-all: install
	$(PYTEST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python docs/generate.py --check

docs: install
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv $(DEMO) *.egg-info
