# make quickstart   environment, embedded corpus, six small runs (λ = 0 and 0.15, three seeds), their report and verdicts
# make test         environment and the whole suite
# make check        lint, types, and the tests that take seconds (also alone: make lint, types, quick-tests)
# make study-data   the corpora of the study: English (Debian's dict-gcide, unpacked here and not installed), Python's own sources
# make study-report what docs/study says, from its records: tables and figures
# make system-deps  what the system tests need besides Python: SLURM, Chromium, a C++ compiler (root, Debian)

PYTHON ?= python3
PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadgroup
BIN := .venv/bin
SWEEP := configs/sweeps/quickstart.json
PREPARE := $(BIN)/python -m data.prepare
GCIDE := data/raw/usr/share/dictd/gcide.dict.dz

.PHONY: quickstart test check lint types quick-tests study-data study-report system-deps

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
	$(BIN)/python -m pytest $(PARALLEL)

check: lint types quick-tests

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: .venv/dev
	$(BIN)/mypy

quick-tests: .venv/dev
	$(BIN)/python -m pytest -q $(PARALLEL) -m "not engine and not gpu and not slow"

# The shares are such that every validation split has 2 million tokens and 300 documents: see docs/data.md. The packages come
# last: what is installed decides what they are, and a folder of other packages is refused.
study-data: .venv/dev $(GCIDE)
	$(PREPARE) --source python-source --vocab-size 1024 --val-fraction 0.175 --out data/prepared/python-1024-study
	$(PREPARE) --source dictd --input $(GCIDE) --skip-bad --vocab-size 1024 --val-fraction 0.15 --out data/prepared/english-1024
	$(PREPARE) --source dictd --input $(GCIDE) --skip-bad --vocab-size 2048 --val-fraction 0.15 --out data/prepared/english-2048
	$(PREPARE) --source dictd --input $(GCIDE) --skip-bad --tokenizer data/prepared/python-1024-study/tokenizer.model --val-fraction 0.15 --out data/prepared/webster-python-1024
	$(PREPARE) --source python-source --packages --vocab-size 1024 --val-fraction 0.025 --out data/prepared/packages-1024
	$(PREPARE) --source python-source --packages --vocab-size 2048 --val-fraction 0.025 --out data/prepared/packages-2048

study-report: .venv/run
	$(BIN)/python -m benchmarks.study_report

# Unpacked and not installed: that needs no root, and the package would bring a dictionary server that starts by itself.
$(GCIDE):
	mkdir -p data/raw
	cd data/raw && rm -f dict-gcide_*.deb && { apt-get download -qq dict-gcide || { apt-get update -qq && apt-get download -qq dict-gcide; }; }
	dpkg-deb --extract data/raw/dict-gcide_*.deb data/raw
	rm data/raw/dict-gcide_*.deb

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
