# make demo   install, train on digits, evaluate, predict, explain, and print where the pictures are
# make test   the tests; make test-scale: the slow tests of many processes, nodes and Ray
# make test-newest  the tests that are marked `newest` on the newest supported Python of this machine, if it is newer
# make test-lowest  the tests with the lowest versions of the libraries that pyproject.toml allows
# make check  lint, formatting and types
# make docs   the documentation site in build/docs/html; runs every chapter of docs/learn
#             make test-docs checks links, exercises, scripts and accessibility, runs the commands of its pages and notebooks
# make notebooks  the chapters as notebooks in build/notebooks
# make parity compare every family with its reference and write docs/parity.md
# make cards  write the cards again from the data of timm, torchvision and open_clip
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# Development installs with uv, which is several times faster and shares files between environments; where uv cannot
# reach an index that pip is configured for, pip installs.
UV := $(BIN)/uv
UV_INSTALL := $(UV) pip install --quiet --constraint constraints.txt
NEWEST := .venv-newest
LOWEST := .venv-lowest
# Where PYTHONDONTWRITEBYTECODE is set, each process of the tests would compile torch and all else again, for 2 s or more.
export PYTHONDONTWRITEBYTECODE :=
RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)

# Some tests need a browser (Debian's Chromium), and the test of two nodes needs the program ip. make installs them if
# they are missing and apt-get can run as root.
BROWSER := command -v chromium || command -v chromium-browser || command -v google-chrome
CAN_INSTALL := test "$$(id -u)" = 0 && command -v apt-get >/dev/null
# One process more than cores, at most four: many tests wait, for a server, a browser or the end of a process.
WORKERS = $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 4 ? cores + 1 : 4)))
PYTEST = -m pytest --numprocesses $(WORKERS) --dist worksteal
TEST = OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)
# The test files with a mark. Collecting all of them takes as long as many tests.
files_with = $(shell grep -l 'mark\.$(1)\b' tests/test_*.py)
# The checks of JavaScript need Node.js and npm, which make installs under the same condition.
NPM := command -v node && command -v npm
APT := apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq

.PHONY: demo test test-scale test-newest test-lowest check check-style check-mypy check-pyright check-javascript docs test-docs notebooks parity cards format wheel clean

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vitrail needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "installing vitrail and torch into $(VENV) (a minute or two, once)"
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv is missing: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	@$(PIP) --editable .
	@touch $@

$(UV): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vitrail needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) uv
	@touch $@

$(VENV)/ready-for-work: $(UV) constraints.txt
	@echo "installing vitrail, torch and the tools of development into $(VENV)"
	@$(UV_INSTALL) --python $(BIN)/python --editable '.[dev]' || $(PIP) --editable '.[dev]'
	@touch $(VENV)/ready $@

demo: $(VENV)/ready
	$(BIN)/vitrail train digits --out $(RUN)
	$(BIN)/vitrail evaluate $(RUN) digits
	$(BIN)/vitrail predict $(RUN) examples/digits
	$(BIN)/vitrail explain $(RUN) examples/digits --out $(RUN)/explanations
	@echo
	@echo "Open $(RUN)/report.html in a browser; look at $(RUN)/attention.png, $(RUN)/curves.png, $(RUN)/confusion.png and $(RUN)/explanations/"

test: $(VENV)/ready-for-work
	@{ $(BROWSER); } >/dev/null || { $(CAN_INSTALL) && { $(APT) chromium; } >/dev/null 2>&1; } || echo "no Chromium, so the browser tests are skipped: apt install chromium" >&2
	$(TEST) -m "not scale"

test-scale: $(VENV)/ready-for-work
	@command -v ip >/dev/null || { $(CAN_INSTALL) && { $(APT) iproute2; } >/dev/null 2>&1; } || echo "no ip, so the test of two nodes is skipped: apt install iproute2" >&2
	$(TEST) --dist loadgroup -m scale $(call files_with,scale)

# What depends most on the version of Python: processes, signals, asyncio, serialization, the exporters, the command line;
# with a run of each verb, a sweep, a server and several kills.
test-newest: $(VENV)/ready-for-work
	@newest="$$($(BIN)/python tools/newest_python.py)"; \
	if [ -z "$$newest" ]; then echo "no supported Python here is newer than that of $(VENV)"; exit 0; fi; \
	set -e; version="$$("$$newest" --version)"; echo "testing with $$version"; \
	"$$newest" -m venv --clear $(NEWEST); \
	$(UV_INSTALL) --python $(NEWEST)/bin/python --editable '.[dev]' \
	    || $(NEWEST)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt --editable '.[dev]'; \
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python $(PYTEST) -m newest $(call files_with,newest); \
	echo "the tests of training, prediction, export, server, sweep and kills pass with $$version"

# The tools and references of the tests are the newest that fit, and tests that compare with a newer transformers are left
# out. Old libraries warn of their own deprecations.
test-lowest: $(VENV)/ready-for-work
	$(UV) pip compile --quiet --upgrade pyproject.toml --extra all --resolution lowest-direct --python $(BIN)/python --output-file $(VENV)/lowest.txt
	$(UV) venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(UV) pip install --quiet --python $(LOWEST)/bin/python --constraint $(VENV)/lowest.txt --editable '.[all,test]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python $(PYTEST) -m "not scale" -W default \
	    $(addprefix --ignore=tests/test_,parity.py public_weights.py foreign_weights.py)

node_modules/ready: package.json package-lock.json
	@{ $(NPM); } >/dev/null || { $(CAN_INSTALL) && { $(APT) nodejs npm; } >/dev/null 2>&1; } || { echo "Node.js and npm are missing: on Debian and Ubuntu, apt install nodejs npm" >&2; exit 1; }
	@npm ci --no-audit --no-fund --silent
	@touch $@

# Each of the four uses one core; `make -j2 check` runs two at a time.
check: check-style check-mypy check-pyright check-javascript

check-style: $(VENV)/ready-for-work
	$(BIN)/ruff format --check
	$(BIN)/ruff check

check-mypy: $(VENV)/ready-for-work
	$(BIN)/mypy

check-pyright: $(VENV)/ready-for-work
	$(BIN)/pyright --pythonpath $(BIN)/python

check-javascript: node_modules/ready
	npx eslint
	npx prettier --check .

$(VENV)/ready-for-docs: $(VENV)/ready-for-work
	@$(UV_INSTALL) --python $(BIN)/python --editable '.[dev,docs]' || $(PIP) --editable '.[dev,docs]'
	@touch $@

# Chapters that ran with the same package and the same code are not run again (build/docs/cache).
docs: $(VENV)/ready-for-docs
	rm -rf build/docs/html
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --builder html docs build/docs/html
	@echo "Open build/docs/html/index.html in a browser"

# Links, exercises, scripts, accessibility and search of the site that make docs built.
test-docs: docs
	@{ $(BROWSER); } >/dev/null || { $(CAN_INSTALL) && { $(APT) chromium; } >/dev/null 2>&1; } || { echo "Chromium is missing: apt install chromium" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/site_checks.py tests/notebook_checks.py tests/page_checks.py

notebooks: $(VENV)/ready-for-docs
	$(BIN)/python -m tools.make_notebooks

parity: $(VENV)/ready-for-work
	VITRAIL_PARITY=docs/parity.md $(BIN)/python -m pytest tests/test_parity.py

cards: $(VENV)/ready-for-work
	$(BIN)/python -m tools.make_cards

format: $(VENV)/ready-for-work node_modules/ready
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	npx eslint --fix
	npx prettier --write .

wheel: $(VENV)/ready-for-work
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) $(NEWEST) $(LOWEST) node_modules build dist
