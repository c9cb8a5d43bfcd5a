# Two commands: `make demo` and `make test`. Everything they need is set up in .venv and .triton.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := client,torch,export,train,ui,dev
# An old server for tests and demos only; production runs NVIDIA's container (README, "Serving").
TRITON_WHEEL := nvidia-pytriton==0.7.0
# Builds engines without a GPU; without its dependencies, which are CUDA's libraries.
TENSORRT_RTX := tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116
export OMP_NUM_THREADS ?= 2

.PHONY: help setup demo test test-models test-serving lint bench bundle clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.ready .triton/.ready  ## the virtual environment and the test server

$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@$(BIN)/python -m pip install --quiet --no-deps $(TENSORRT_RTX) 2>/dev/null || \
	  echo "no TensorRT for RTX for this system: its tests are skipped"
	touch $@

.triton/.ready: $(VENV)/.ready
	@if [ "$$(uname -s)" = Linux ]; then \
	  $(BIN)/python -m pip install --quiet --no-deps --upgrade --target .triton '$(TRITON_WHEEL)'; \
	else mkdir -p .triton; echo "no tritonserver for this system: the serving parts are Linux only"; fi
	touch $@

demo: setup  ## enrol and identify synthetic walkers, in-process and through a real Triton server
	$(BIN)/gaitsdk demo

test: setup lint  ## format, types and every test (a quarter of an hour on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-models: setup  ## export every backbone at its published sizes and compare (an hour on two cores)
	$(BIN)/python -m pytest -m models

SOAK ?= 3600
test-serving: setup  ## load, kills and dropped requests on a real server, then an hour's soak (SOAK=seconds)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m serving
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/load.py --soak $(SOAK) --max-batch 2 --max-queue 4 --instances 2 --threads 1

lint: $(VENV)/.ready  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bundle: setup  ## train the shipped bundle again on synthetic walkers (about an hour on two cores)
	$(BIN)/python -m gaitsdk_training.recipes.default --out sdk/gaitsdk/bundles/default.gait
	$(BIN)/gaitsdk export sdk/gaitsdk/bundles/default.gait --to onnx
	$(BIN)/gaitsdk deploy --out triton_models

# By hand: what wants data (shipped_bundle, real_walks, reproduce), many hours (proof_of_learning), the server and a quiet
# machine (load, serving_overhead, serving_floor, serving_batching, enrol_while_serving, recording_cost), or a GPU (cuda_paths).
BENCHMARKS := import_time embed rerank export_matrix synthetic_walkers data_loading training_step rerankers evaluation open_set gaitmpl_readings backbones
bench: setup  ## committed measurements that need nothing but this machine, again (hours)
	for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:  ## remove what was built, not what was trained
	rm -rf $(VENV) .triton build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
