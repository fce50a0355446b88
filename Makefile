# make quickstart   environment, embedded corpus, six small runs (λ = 0 and 0.15, three seeds), their report and verdicts
# make test         environment and the whole suite
# make check        lint, types, and the tests that take seconds (also alone: make lint, types, quick-tests)
# make system-deps  what the system tests need besides Python: SLURM, Chromium, a C++ compiler (root, Debian)

PYTHON ?= python3
BIN := .venv/bin
SWEEP := configs/sweeps/quickstart.json

.PHONY: quickstart test check lint types quick-tests system-deps

quickstart: .venv/run
	$(BIN)/python -m data.prepare --source python-source --vocab-size 1024 --out data/prepared/python-1024
	$(BIN)/python -m slurm.submit $(SWEEP) --local --jobs 2
	$(BIN)/python -m analysis report $(SWEEP) --out runs/report --title "Quickstart: λ = 0 and λ = 0.15"
	@echo
	@$(BIN)/python -m analysis loss_curves $(SWEEP)
	@echo
	@echo "Report: runs/report/index.html. Runs: runs/quickstart/*/ (metrics.jsonl, status.json, checkpoints/)."
	@echo "Data: data/prepared/python-1024. Try next:"
	@echo "  $(BIN)/deepspeed train.py --config configs/quickstart.json --set name=quickstart-wd1 --set optim.weight_decay=1"
	@echo "  $(BIN)/python train.py --config configs/gpt124m_wd0.1.json --dry-run"

test: .venv/dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadgroup

check: lint types quick-tests

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: .venv/dev
	$(BIN)/mypy

quick-tests: .venv/dev
	$(BIN)/python -m pytest -q -m "not engine and not gpu"

system-deps:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge chromium chromium-driver g++

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	@touch $@

.venv/dev: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	@touch .venv/run $@
