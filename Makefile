# The commands of this repository; the first one that needs it makes .venv. GNU make 3.81 and later.

ARGS =
python = .venv/bin/python
# Holds the folder that .venv was made in: a copied or renamed clone would otherwise run the old one's sources.
ready = .venv/ready
peers = .venv/peers
browser = .venv/browser
axe_version = 4.14.1
axe = build/browser/node_modules/axe-core/axe.min.js
kernels = CMakeLists.txt $(wildcard csrc/*.cpp csrc/*.h)
# Modules are compiled when they are first imported: all of torch's, and its company's, would take a minute.
install = $(python) -m pip install --disable-pip-version-check --no-compile -c constraints.txt
# A process for each core, since most tests have one thread.
side_by_side = -n auto --maxprocesses 8

ifneq "$(shell test -x $(python) && cat $(ready) 2>/dev/null)" "$(CURDIR)"
.PHONY: $(ready)
endif

.PHONY: help train test test-slow test-browser check docs notebooks tutorials bench native sanitize clean

help:
	@echo 'make train      train a small model on text that Python brings along, about two minutes'
	@echo '                ARGS="FILE --steps 500": your own text; any flag of "unrolled train"'
	@echo 'make test       the tests                        ARGS="-k resets": some of them, "-n 0": in one process'
	@echo 'make test-slow  the tests that take minutes'
	@echo 'make test-browser  the inspector page in Chromium, which has to be there'
	@echo 'make check      lint, format, types, layering, the code blocks of the docs'
	@echo 'make docs       the documentation as a site, build/docs/html; it runs the tutorials, a few minutes'
	@echo 'make notebooks  docs/tutorials/*.ipynb, from the .py files beside them'
	@echo 'make tutorials  every tutorial, and whether its exercises can be solved'
	@echo 'make bench      the benchmarks                   ARGS="import_time": one of them'
	@echo 'make native     rebuild the C++ kernels alone, with the CMake on the PATH; "make test" does so by pip'
	@echo 'make sanitize   the C++ kernels with every access to memory, every overflow and every race reported'
	@echo 'make clean      remove .venv, the built library and every cache; runs/ stays'
	@echo 'PYTHON=/path/to/python3 chooses the interpreter (3.11 or newer) when .venv is made.'

train: $(ready)
	@.venv/bin/unrolled train $(ARGS)

# What "make check test" has run already by then.
checked = tests/test_layering.py tests/test_docs.py
done = $(if $(filter check,$(MAKECMDGOALS)),$(checked:%=--ignore=%))

# A process that has no files left takes some from those that have many.
test: $(ready)
	$(python) -m pytest $(side_by_side) --dist worksteal $(done) $(ARGS)

# Whole files to a process: some share a build, or what they have compiled.
test-slow: $(peers)
	$(python) -m pytest -m slow $(side_by_side) --dist loadfile $(ARGS)

# The page in the system's Chromium: clicked, hovered, read by keys, and looked over by axe-core.
test-browser: $(browser) $(axe)
	$(python) -m pytest -m browser $(wildcard tests/test_*_browser.py) $(ARGS)

check: $(ready)
	$(python) -m ruff check
	$(python) -m ruff format --check
	$(python) -m mypy
	$(python) -m pytest -q $(side_by_side) $(checked)

docs: $(ready)
	@$(python) docs/website/build.py

notebooks: $(ready)
	@$(python) docs/website/notebooks.py

tutorials: $(ready)
	$(python) -m pytest -m "slow or not slow" tests/test_tutorials.py $(ARGS)

bench: $(ready)
	@$(python) benchmarks/run.py $(ARGS)

# What changed since the last time is compiled, and the compiler's messages are seen: for work on a kernel.
native:
	@cmake -S . -B build/native -DCMAKE_BUILD_TYPE=Release >/dev/null
	@MAKEFLAGS=--no-print-directory cmake --build build/native --config Release --parallel
	@cmake --install build/native --config Release

# Two builds, because the sanitizers of memory and of threads exclude each other.
sanitize:
	@for build in memory:address,undefined,float-cast-overflow threads:thread; do \
	  folder=build/sanitize-$${build%%:*}; \
	  echo "building with -fsanitize=$${build#*:}"; \
	  cmake -S . -B $$folder -DUNROLLED_SANITIZE=$${build#*:} >/dev/null || exit 1; \
	  MAKEFLAGS=--no-print-directory cmake --build $$folder --target driver --parallel $$(getconf _NPROCESSORS_ONLN) \
	    >/dev/null || exit 1; \
	done
	@build/sanitize-memory/driver recurrence products randoms steps elements refusals step-refusals
	@build/sanitize-threads/driver threads

clean:
	rm -f src/unrolled/recurrence/libunrolled.*
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +

# A candidate may be a shim that only prints an error, or lack venv (Debian's python3 without python3-venv): each is tried.
$(ready): pyproject.toml constraints.txt $(kernels)
	@if ! $(python) -c '' 2>/dev/null; then \
	  for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11 python); do \
	    if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      echo "Making .venv with $$candidate, once; torch is a large download."; \
	      "$$candidate" -m venv --clear .venv || exit 1; \
	      break; \
	    fi; \
	  done; \
	fi; \
	$(python) -c '' 2>/dev/null || { \
	  echo 'No Python 3.11 or newer that can make a virtual environment: tried $(if $(PYTHON),$(PYTHON),python3, python3.14 to python3.11, python).' >&2; \
	  echo 'Install one (on Debian and Ubuntu: python3 and python3-venv), or name it: make PYTHON=/path/to/python3' >&2; \
	  exit 1; }
	$(install) -e '.[dev]'
	@printf '%s\n' "$(CURDIR)" > $(ready)

# Other libraries, to compare with: half a gigabyte, and a minute, that only the slow tests need.
$(peers): $(ready)
	$(install) 'unrolled[interop-test]'
	@touch $(peers)

$(browser): $(ready)
	$(install) 'unrolled[browser-test]'
	@touch $(browser)

# An accessibility checker that only npm has.
$(axe):
	@command -v npm >/dev/null || { \
	  echo 'npm is missing, which brings axe-core, the checker of accessibility: on Debian sudo apt install npm' >&2; \
	  exit 1; }
	npm install --prefix build/browser --no-save --no-audit --no-fund --ignore-scripts axe-core@$(axe_version)
	@touch $(axe)
