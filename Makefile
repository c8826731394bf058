# make setup | gate | test | proof | clean. Needs Python >= 3.11 with venv and pip; everything else goes to .venv.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.detgate-installed
GATE_ARGS ?=

# The tests start some hundred processes: what one compiled the next one finds, whatever the caller's environment says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup gate test proof clean
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt requirements-mmdet.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "wanted Python >= 3.11, found %s: make setup PYTHON=python3.11" % sys.version.split()[0])'
	@echo "installing into $(VENV), once: some minutes, and several GB where torch comes with CUDA"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[onnxruntime,openvino,train,dev]'
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-mmdet.txt
	@touch $(STAMP)

gate: setup
	$(RUN) -m pytest -m "accuracy or performance" --benchmark-json=results/benchmark.json $(GATE_ARGS)

test: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy harness
	$(RUN) -m pytest -m "selftest and not slow" -n auto --maxprocesses 4 --cov --cov-report=term --cov-fail-under=90

proof: setup
	$(RUN) -m pytest -m slow

clean:
	rm -rf $(VENV) results .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
