# make demo: install and do the whole job on synthetic data.  make test: install and run all tests.
# PYTHON chooses the interpreter for .venv (3.11 or 3.12); without it the first that fits is taken.

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
DEMO := demo
SETUP_INPUTS := requirements.txt requirements-dev.txt setup.py pyproject.toml tools/install_detectron2.py

.PHONY: setup demo test bench lint

setup: $(VENV)/.installed

$(VENV)/.installed: $(SETUP_INPUTS)
	@set -e; found=; \
	if [ ! -x $(PY) ]; then \
	  for python in $(PYTHON) python3 python3.12 python3.11; do \
	    if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; \
	    then found=$$python; break; fi; \
	  done; \
	  [ -n "$$found" ] || { echo "error: no Python 3.11 or 3.12 found; name one: make setup PYTHON=/path/to/python3.12" >&2; exit 1; }; \
	  echo "making $(VENV) with $$($$found --version)"; \
	  $$found -m venv $(VENV); \
	fi
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(PY) tools/install_detectron2.py
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

test: setup
	$(PY) -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/black --check --quiet .
	$(BIN)/mypy

bench: setup
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-bench.txt
	$(PY) tools/benchmark.py

# The main job on data made for it. Every step is a command that works the same on one's own data.
demo: setup
	@rm -rf $(DEMO)/run $(DEMO)/predictions $(DEMO)/ground_truth
	$(PY) tools/make_synthetic_dataset.py --output $(DEMO)/data
	$(PY) tools/inspect_dataset.py --root $(DEMO)/data --channel-order BGR --png $(DEMO)/dataset.png
	$(PY) tools/visualize_data.py --root $(DEMO)/data --channel-order BGR --limit 8 --output $(DEMO)/ground_truth
	$(PY) train_net.py --config-file configs/mask_rcnn_R_18_FPN_small.yaml \
	  DATASETS.CELL.ROOT $(DEMO)/data DATASETS.CELL.VAL_FRACTION 0.2 INPUT.CELL.CHANNEL_ORDER BGR \
	  TEST.EVAL_PERIOD 100 OUTPUT_DIR $(DEMO)/run
	$(PY) tools/plot_metrics.py --output $(DEMO)/curves.png $(DEMO)/run
	$(PY) predict.py --config-file $(DEMO)/run/config.yaml --input $(DEMO)/data/test_release \
	  --id-map $(DEMO)/data/test_image_name_to_ids.json --output $(DEMO)/predictions --overlay --labels --geojson --csv \
	  MODEL.WEIGHTS $(DEMO)/run/model_final.pth
	$(PY) tools/validate_submission.py --predictions $(DEMO)/predictions/test-results.json \
	  --id-map $(DEMO)/data/test_image_name_to_ids.json --images $(DEMO)/data/test_release --require-all
	$(PY) train_net.py --config-file $(DEMO)/run/config.yaml --eval-only \
	  MODEL.WEIGHTS $(DEMO)/run/model_final.pth OUTPUT_DIR $(DEMO)/evaluation
	$(PY) tools/make_report.py --run $(DEMO)/run --output $(DEMO)/report.html
	@printf '%s\n' "" "data and its figures     $(DEMO)/data $(DEMO)/dataset.png" \
	  "sheet of ground truth    $(DEMO)/ground_truth/sheet.png" \
	  "model and its curves     $(DEMO)/run/model_final.pth $(DEMO)/curves.png" \
	  "report of the run        $(DEMO)/report.html" \
	  "submission               $(DEMO)/predictions/test-results.zip" \
	  "predicted cells          $(DEMO)/predictions/{overlays,labels,geojson,measurements}/"
