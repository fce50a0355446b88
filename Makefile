# make quickstart   environment, embedded corpus, six small runs (λ = 0 and 0.15, three seeds), their report and verdicts
# make test         environment and the whole suite
# make check        lint, types, and the tests that take seconds (also alone: make lint, types, quick-tests)
# make study-data   the corpora of the study: English (Debian's dict-gcide, unpacked here and not installed), Python's own sources
# make study-report what docs/study says, from its records: tables and the figure
# make system-deps  what the system tests need besides Python: SLURM, Chromium, a C++ compiler (root, Debian)

PYTHON ?= python3
PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadgroup
BIN := .venv/bin
SWEEP := configs/sweeps/quickstart.json
PREPARE := $(BIN)/python -m data.prepare
GCIDE := data/raw/usr/share/dictd/gcide.dict.dz

STUDY := loss_curves bias_variance generalisation effective_lr early
DECLARED := docs/study/records/study_s48 docs/study/records/study_s48_matched docs/study/records/study_constant
LENGTHS := docs/study/records/study_s24 docs/study/records/study_s48
DECLARED_SEEDS := $(foreach length,$(LENGTHS),$(length)/seeds[0-4]-*)
PRECISIONS := docs/study/records/study_precision \
	$(foreach decay,0.0 0.151,docs/study/records/study_s24/seeds[0-4]-lr0.01-weight_decay$(decay)-??????????.parquet)
COSINE := $(foreach decay,0.0 0.108,docs/study/records/study_s48/seeds[0-7]-lr0.007-weight_decay$(decay)-??????????.parquet)
LLAMA := docs/study/records/small_llama/rmsnorm-*
GPT2 := docs/study/records/study_s24/seeds[0-2]-lr0.01-*
MECHANISMS := small_mechanisms small_layer_norms small_layer_norms_adam small_kfac_gpt small_large_batch \
	small_without_bn
BATCHES := docs/study/records/small_mechanisms docs/study/records/small_large_batch
STUDY_FILES := loss_curves_table1.csv bias_variance_table1.csv bias_variance_table2.csv generalisation_table1.csv \
	effective_lr_table1.csv early_table1.csv loss_difference.png early.png

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
	for scale in s24 s48; do \
		for name in $(STUDY); do $(BIN)/python -m analysis $$name docs/study/records/study_$$scale --out runs/study/$$scale || exit 1; done; \
		for file in $(STUDY_FILES); do cp runs/study/$$scale/$$file docs/study/$$scale/ || exit 1; done; \
	done
	$(BIN)/python -m analysis effective_lr docs/study/records/study_s48 docs/study/records/study_s48_matched --out runs/study/matched
	cp runs/study/matched/matched.png $(foreach figure,branches generalisation size,runs/study/s48/$(figure).png) docs/study/s48/
	$(BIN)/python -m analysis averages docs/study/records/study_s48 --out runs/study/s48
	cp runs/study/s48/averages_table1.csv docs/study/s48/
	$(BIN)/python -m analysis bias_variance docs/study/records/study_constant --out runs/study/constant
	$(BIN)/python -m analysis averages docs/study/records/study_constant --out runs/study/constant
	$(BIN)/python -m analysis averages docs/study/records/study_constant $(COSINE) --out runs/study/beside_cosine
	cp runs/study/beside_cosine/averages_table1.csv docs/study/constant/averages_beside_cosine.csv
	cp runs/study/constant/averages_table1.csv runs/study/constant/bias_variance_table2.csv runs/study/constant/branches.png docs/study/constant/
	$(BIN)/python -m analysis loss_curves docs/study/records/study_english --out runs/study/english
	cp runs/study/english/loss_curves_table1.csv docs/study/english/
	$(BIN)/python -m analysis loss_curves docs/study/records/study_documents --out runs/study/documents
	cp runs/study/documents/loss_curves_table1.csv docs/study/documents/
	$(BIN)/python -m analysis declared $(DECLARED) --out runs/study/declared
	cp runs/study/declared/declared_table1.csv docs/study/declared.csv
	$(BIN)/python -m analysis precision $(PRECISIONS) --out runs/study/precision
	$(BIN)/python -m analysis sweep $(PRECISIONS) --out runs/study/precision
	cp runs/study/precision/precision_table1.csv docs/study/precision/parity.csv
	cp runs/study/precision/sweep_table3.csv docs/study/precision/between.csv
	cp runs/study/precision/precision.png docs/study/precision/
	$(BIN)/python -m analysis hours 'docs/study/records/*' --out runs/study/hours
	cp runs/study/hours/hours_table1.csv docs/study/hours.csv
	$(BIN)/python -m analysis transfer $(LENGTHS) --out runs/study/transfer
	$(BIN)/python -m analysis transfer $(DECLARED_SEEDS) --out runs/study/transfer_declared
	cp runs/study/transfer_declared/transfer.png docs/study/transfer/
	for table in 1 2; do \
		cp runs/study/transfer/transfer_table$$table.csv docs/study/transfer/eight_seeds_table$$table.csv || exit 1; \
		cp runs/study/transfer_declared/transfer_table$$table.csv docs/study/transfer/five_seeds_table$$table.csv || exit 1; \
	done
	$(BIN)/python -m analysis sweep $(LENGTHS) --out runs/study/lengths
	cp runs/study/lengths/sweep_table5.csv docs/study/transfer/gains.csv
	$(BIN)/python -m analysis sweep docs/study/records/study_s48_tuning --out runs/study/pilot
	cp runs/study/pilot/sweep_table4.csv docs/study/s48_pilot.csv
	$(BIN)/python -m analysis sweep $(LLAMA) $(GPT2) --out runs/study/blocks
	cp runs/study/blocks/sweep_table2.csv docs/study/blocks/best.csv
	cp runs/study/blocks/sweep_table4.csv docs/study/blocks/between.csv
	cp runs/study/blocks/decay.png docs/study/blocks/
	$(BIN)/python -m analysis loss_curves $(LLAMA) $(GPT2) --out runs/study/blocks
	cp runs/study/blocks/loss_curves_table1.csv docs/study/blocks/losses.csv
	$(BIN)/python -m analysis sweep $(LLAMA) --out runs/study/qk_norm
	cp runs/study/qk_norm/sweep_table4.csv docs/study/blocks/qk_norm.csv
	for sweep in $(MECHANISMS); do \
		$(BIN)/python -m analysis mechanisms docs/study/records/$$sweep --out runs/study/$$sweep || exit 1; \
		for table in runs/study/$$sweep/mechanisms_table*.csv; do cp $$table docs/study/mechanisms/$${sweep}_$${table##*mechanisms_} || exit 1; done; \
	done
	cp runs/study/small_layer_norms_adam/mechanism_1.png docs/study/mechanisms/small_layer_norms_adam.png
	$(BIN)/python -m analysis mechanisms $(BATCHES) --out runs/study/batches
	cp runs/study/batches/mechanisms_table3.csv docs/study/mechanisms/batches.csv

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
