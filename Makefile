# Everything here works from a fresh clone with Python 3.11 and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
FUZZ_SECONDS ?= 600
RUNS ?= 5
# End-to-end tests of the front, which TLS workers change, and that do not choose the number of workers themselves.
FRONT_E2E := $(addprefix tests/e2e/test_,bad_input.py chaos.py isolation.py marks.py mutated_sessions.py pykmip.py \
	resumption.py rotation.py shutdown.py when_none.py)
LOCK := --quiet --universal --generate-hashes --no-emit-package kmip-gateway

.PHONY: demo test test-workers test-compiled wheel-compiled check audit chaos reload-soak machine report report-full mutants dashboard-values comparison instructions growth outages attacks fuzz peers cosmian fmt lock clean

demo: $(VENV)/lab  ## Four simulated key managers and the gateway: its gain, and a failover
	$(BIN)/kmip-lab demo $(ARGS)

test: $(VENV)/development  ## All tests, in four processes, which mostly wait; ARGS for pytest (ARGS='-n 0 --pdb' for one process)
	$(BIN)/pytest -n 4 --dist worksteal $(ARGS)

test-workers: $(VENV)/development  ## The end-to-end tests of what clients notice, with two TLS workers; E2E='tests/e2e' for all
	TLS_WORKERS=2 $(BIN)/pytest -n 4 --dist worksteal $(or $(E2E),$(FRONT_E2E)) $(ARGS)

test-compiled: $(VENV)/development wheel-compiled  ## The same with the compiled build of the gateway (needs gcc); E2E='tests/e2e' for all
	COMPILED=$(CURDIR)/build/compiled $(BIN)/pytest -n 4 --dist worksteal $(or $(E2E),$(FRONT_E2E)) $(ARGS)

wheel-compiled: $(VENV)/bin/python  ## A wheel with compiled hot modules, for this Python and processor, in dist/compiled, unpacked in build/compiled; some three minutes, needs gcc; MYPYC_OPT_LEVEL (3)
	rm -rf dist/compiled build/compiled
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=true $(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps -w dist/compiled .
	$(BIN)/python -m zipfile -e dist/compiled/*.whl build/compiled

audit: $(VENV)/development  ## 100,000 requests under faults: each has one line of the audit trail; AUDIT_REQUESTS, SEED, ARGS for pytest
	AUDIT_REQUESTS=$(or $(AUDIT_REQUESTS),100000) $(BIN)/pytest -s tests/e2e/test_audit.py -k every_request $(ARGS)

chaos: $(VENV)/development  ## A minute of it with 200 clients, and the balance; CHAOS_SECONDS, CHAOS_CLIENTS, SEED, ARGS for pytest
	CHAOS_SECONDS=$(or $(CHAOS_SECONDS),60) CHAOS_CLIENTS=$(or $(CHAOS_CLIENTS),200) $(BIN)/pytest -s tests/e2e/test_chaos.py $(ARGS)

reload-soak: $(VENV)/development  ## A minute of load over reloads, with 0 and with 2 TLS workers; RELOAD_SECONDS, ARGS for pytest
	RELOAD_SECONDS=$(or $(RELOAD_SECONDS),60) $(BIN)/pytest -s tests/e2e/test_reload_soak.py $(ARGS)

machine: $(VENV)/development  ## More sequences of events for the state machine of pools; EXAMPLES (2000)
	EXAMPLES=$(or $(EXAMPLES),2000) $(BIN)/pytest tests/upstream/test_pool_machine.py $(ARGS)

report: $(VENV)/development  ## The application note's experiment: docs/speed-report.md, on an idle machine; ARGS for kmip-lab report
	$(BIN)/kmip-lab report --save docs/speed-report.json $(ARGS)

report-full: $(VENV)/development  ## The same at the note's own size: some hours
	$(BIN)/kmip-lab report --save docs/speed-report.json --scale 1 $(ARGS)

check: $(VENV)/development  ## Format, lint, types, layers, language
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.words

mutants: $(VENV)/development  ## Flip each row of the policy tables: a test must notice
	$(BIN)/python -m tests.mutants

dashboard-values: $(VENV)/development  ## The values that a real Prometheus returns for all panels: docs/dashboard-values.md
	DASHBOARD_VALUES=docs/dashboard-values.md $(BIN)/pytest -q tests/e2e/test_prometheus.py $(ARGS)

comparison: $(VENV)/development wheel-compiled  ## HAProxy, nginx and both builds of the gateway, on an idle machine, RUNS (5) times: docs/comparison.json, tables of docs/comparison.md
	mkdir -p comparisons
	for run in $$(seq $(RUNS)); do $(BIN)/kmip-lab compare --compiled build/compiled --json $(ARGS) > comparisons/new && mv comparisons/new comparisons/$$(date +%F-%H%M%S).json || exit; done
	$(BIN)/kmip-lab compare --gather --json comparisons/*.json > docs/comparison.json
	sed -i '/^## Tables/q' docs/comparison.md
	(echo; $(BIN)/kmip-lab compare --gather --markdown docs/comparison.json) >> docs/comparison.md

instructions: $(VENV)/development  ## Instructions per request against the baseline, under valgrind; ARGS=--update takes them as the new one
	$(BIN)/python -m tests.benchmarks instructions $(ARGS)

growth: $(VENV)/development  ## How these grow with messages, batches, backends, identities, idle clients, pools, limits
	$(BIN)/python -m tests.benchmarks growth $(ARGS)

outages: $(VENV)/development  ## Measure what clients notice of slow, dead and busy key managers, in some four minutes; ARGS=--only c,d measures these rows
	$(BIN)/python -m tests.benchmarks.outages $(ARGS)

attacks: $(VENV)/development  ## Measure what hostile peers cost a neighbour, in some six minutes; ARGS=--only b2,b7 measures these rows
	$(BIN)/python -m tests.benchmarks.attacks $(ARGS)

fuzz: $(VENV)/fuzzing  ## Fuzz the readers of untrusted bytes, and sessions; FUZZ_SECONDS (600 in all), ARGS=--keep adds to the corpus
	$(BIN)/python -m tests.fuzz --seconds $$(( $(FUZZ_SECONDS) * 5 / 6 )) $(ARGS)
	MUTATED_SECONDS=$$(( $(FUZZ_SECONDS) / 6 )) $(BIN)/pytest -q tests/e2e/test_mutated_sessions.py

cosmian: $(VENV)/development  ## Build Cosmian KMS, some twenty minutes: make peers then tries it, too
	$(BIN)/python -m tests.peers.cosmian

peers: $(VENV)/development  ## Independent clients and servers, directly and through the gateway, in some two minutes: docs/compatibility.md; ARGS="--only kmip-go"
	$(BIN)/python -m tests.peers $(or $(ARGS),--save)

fmt: $(VENV)/development  ## Format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/development  ## Pin all dependencies anew
	$(BIN)/uv pip compile $(LOCK) pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile $(LOCK) pyproject.toml lab/pyproject.toml --extra report --group dev -o requirements-dev.lock
	$(BIN)/uv pip compile $(LOCK) pyproject.toml lab/pyproject.toml -o lab/requirements.lock
	$(BIN)/uv pip compile $(LOCK) --group fuzz -o requirements-fuzz.lock
	for peer in barbican cyphera mongodb swift; do \
		$(BIN)/uv pip compile $(LOCK) tests/peers/$$peer/requirements.txt -o tests/peers/$$peer/requirements.lock || exit 1; \
	done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/lab: $(VENV)/bin/python lab/requirements.lock pyproject.toml lab/pyproject.toml
	@echo "Installing into $(VENV), about half a minute"
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r lab/requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e . -e lab
	touch $@

$(VENV)/development: $(VENV)/bin/python requirements-dev.lock pyproject.toml lab/pyproject.toml
	@echo "Installing into $(VENV), about half a minute"
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e . -e lab
	touch $@ $(VENV)/lab

$(VENV)/fuzzing: $(VENV)/development requirements-fuzz.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-fuzz.lock
	touch $@
