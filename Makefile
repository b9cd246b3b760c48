# fairweather: make demo | install | test | check | docs | bench | clean
PYTHON ?= python3
PIP = -m pip -qq --disable-pip-version-check

.PHONY: demo install test check types tests docs bench clean

# The default install alone (no PyTorch) in an environment of its own, then the photos in examples/.
demo: .venv-demo/.installed
	@if .venv-demo/bin/python -c 'import torch' 2>/dev/null; then echo "torch is importable in .venv-demo: this demo is to run without it" >&2; exit 1; fi
	.venv-demo/bin/fairweather restore examples -o restored --overwrite
	@echo "Look: examples/ holds the photos, restored/ what fairweather made of them."

.venv-demo/.installed: pyproject.toml constraints.txt $(shell find src -type f -not -path '*/__pycache__/*' -not -path '*.egg-info/*')
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python $(PIP) install -c constraints.txt .
	@touch $@

# Everything, editable: what developing needs. Python compiles what is imported when it is; all of it would take a minute.
install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) install --no-compile -c constraints.txt -e '.[onnxruntime,photo,train,evaluate,web,quantize,cluster,video,docs,dev]'
	@touch $@

check: install
	.venv/bin/ruff check .
	.venv/bin/mypy

# mypy takes a core for half a minute, beside the tests; what fails in either fails here.
test: install
	.venv/bin/ruff check .
	@$(MAKE) --no-print-directory -j 2 types tests docs

types: install
	nice .venv/bin/mypy

tests: install
	@sh tests/web/chromium.sh
	# files side by side in two processes of one thread each, for most of a test runs on one core
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile

# The site, into site/: strict (a broken link or a docstring that does not match its function fails), without network.
docs: install
	NO_MKDOCS_2_WARNING=1 nice .venv/bin/mkdocs build --strict

# Tables of quality and speed; the real photos are looked for in ../shared/data.
bench: install
	.venv/bin/python benchmarks/quality.py
	.venv/bin/python benchmarks/speed.py

clean:
	rm -rf .venv .venv-demo restored site build dist .pytest_cache .mypy_cache .ruff_cache
