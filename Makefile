# The only task runner. Each target sets up what it needs in .venv, once; a change of the build, the dependencies or the
# native kernels sets it up again.
#
#   make up ARGS='--once "What is 17 + 25?"'    a whole fleet on this machine
#   make test                                   every test that needs no GPU, browser, database server or long time
#   make test-slow                              the tests that take minutes
#   make test-memory                            of those, what an engine of each size holds against its plan, as a table
#   make test-sanitize                          the native kernels under AddressSanitizer and UndefinedBehaviorSanitizer
#   make test-clang                             the same built by clang (CLANG=...): its tests, and that its bits are the usual ones
#   make check                                  style, types, generated code, wire compatibility, architecture, links
#   make bench                                  numbers of this machine, as JSON in build/bench
#   make bench-start                            time to the first token of a process that has to start, as JSON in build/bench
#   make bench-relay ARGS='--model DIR'          tokens a second through the service beside the engine's own
#   make bench-cpu ARGS='--cells "0.8B/*"'       the native engine beside its peers and the machine's limits
#   make eval-pocket                            the committed small model's scores; ARGS="--format int4" as the engine serves it
#   make wheel                                  build the wheel and try it in a fresh environment
#   make format | proto | constraints | clean   tidy the code; regenerate gRPC's; pin what is installed; remove what was built

PYTHON ?= python3
NICE   ?=
PYTEST ?= -n 2 --dist loadfile
ARGS   ?=

VENV    := .venv
BIN     := $(VENV)/bin
RUN     := $(VENV)/.shoal-run
TORCH   := $(VENV)/.shoal-torch
DEV     := $(VENV)/.shoal-dev
NATIVE  := CMakeLists.txt $(wildcard kernels/cpu/*.cc kernels/cpu/*.h kernels/cpu/*/*.cc kernels/cpu/*/*.h kernels/cpu/*/*.inl)
INPUTS  := pyproject.toml constraints.txt $(NATIVE)
PIP     := $(NICE) $(BIN)/python -m pip install --quiet -c constraints.txt
PARTS   := agent controller deploy kernels proto runtime
PROTOS  := $(sort $(wildcard proto/v1/*.proto))
PROTOC   = $(BIN)/python -P -m grpc_tools.protoc -Ishoal/proto=proto
RELEASE := proto/released/v0.1.binpb

.PHONY: up test test-slow test-memory test-sanitize test-clang check check-style check-types check-proto check-house format bench bench-relay bench-cpu bench-start eval-pocket wheel proto proto-release constraints clean links
.DELETE_ON_ERROR:

# Needs no torch, but for the reference back end.
up: $(if $(findstring reference,$(ARGS) $(SHOAL_UP_BACKEND)),$(TORCH),$(RUN))
	@$(BIN)/shoal up $(ARGS)

test: $(DEV)
	@$(NICE) $(BIN)/pytest $(PYTEST) $(ARGS)

# `make -k check` goes on after the first complaint.
test-slow: $(DEV)
	@$(NICE) $(BIN)/pytest -p no:xdist -m slow $(ARGS)

test-memory: $(DEV)
	@$(NICE) $(BIN)/pytest -p no:xdist -m slow -s -rs tests/runtime/test_resident_memory.py $(ARGS)

# $(call build-beside,FOLDER,OPTIONS): a module of its own beside the usual one, in an environment that borrows the packages
# of .venv, and only its own `shoal`.
define build-beside
	@$(PYTHON) -m venv --without-pip $(1)/venv
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(1)/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
	$(NICE) $(BIN)/python -m pip --python $(1)/venv/bin/python install --quiet --no-build-isolation --no-deps \
	  -C build-dir=$(1)/cmake $(2) -e .
endef

# The C++ library is loaded first, for AddressSanitizer looks for what it replaces when the process starts.
SANITIZE := build/sanitize
test-sanitize: $(DEV)
	$(call build-beside,$(SANITIZE),-C cmake.define.SHOAL_SANITIZE=ON)
	@ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" $(NICE) \
	  $(SANITIZE)/venv/bin/python -P -m pytest $(PYTEST) --timeout 1200 tests/kernels -k cpu $(ARGS)

# A warning is an error here, but for one of Python's header, which may say again what the C library's have said.
# Which of its loops an older clang spills is left out: it decides its speed, not what it computes.
CLANG    ?= clang++
BY_CLANG := build/clang
test-clang: $(DEV)
	$(call build-beside,$(BY_CLANG),-C cmake.define.CMAKE_CXX_COMPILER=$(CLANG) \
	  -C "cmake.define.CMAKE_CXX_FLAGS=-Werror -Wno-error=macro-redefined")
	@$(NICE) $(BIN)/python -P tests/kernels/engine_bits.py > $(BY_CLANG)/usual.bits
	@$(NICE) $(BY_CLANG)/venv/bin/python -P tests/kernels/engine_bits.py > $(BY_CLANG)/clang.bits
	diff $(BY_CLANG)/usual.bits $(BY_CLANG)/clang.bits
	@$(NICE) $(BY_CLANG)/venv/bin/python -P -m pytest $(PYTEST) tests/kernels -k "cpu and not sums_in_registers" $(ARGS)

check: check-style check-types check-proto check-house

check-style: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-types: $(DEV) links
	$(NICE) $(BIN)/mypy

check-proto: $(DEV) links
	@rm -rf build/proto && mkdir -p build/proto
	$(PROTOC) --python_out=build/proto --pyi_out=build/proto --grpc_python_out=build/proto \
	  --include_imports --descriptor_set_out=build/proto/now.binpb $(PROTOS:%=shoal/%)
	diff -r -x '*.proto' -x __init__.py -x __pycache__ build/proto/shoal/proto/v1 proto/v1
	$(BIN)/buf lint build/proto/now.binpb --config proto/buf.yaml
	$(BIN)/buf breaking build/proto/now.binpb --config proto/buf.yaml --against $(RELEASE)

check-house: $(DEV)
	$(NICE) $(BIN)/pytest -q -p no:xdist tests/test_architecture.py tests/test_dependencies.py tests/test_links.py

# Rewrites files, so it is not part of `check`.
format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)
	@OMP_NUM_THREADS=1 $(NICE) $(BIN)/python tests/bench/decode.py

bench-start: $(DEV)
	@$(NICE) $(BIN)/python tests/bench/start.py $(ARGS)

bench-relay: $(DEV)
	@$(NICE) $(BIN)/python tests/bench/relay.py $(ARGS)

# gguf writes the peers' files; the peers themselves are named by environment variables (tests/bench/contestants.py).
bench-cpu: $(DEV)
	@$(BIN)/python -c 'import gguf' 2>/dev/null || $(PIP) 'gguf>=0.17,<1'
	@$(NICE) $(BIN)/python tests/bench/cpu.py $(ARGS)

eval-pocket: $(DEV)
	@$(NICE) $(BIN)/python -m models.pocket.evaluate $(ARGS)

wheel: $(DEV)
	@$(NICE) $(BIN)/pytest -p no:xdist -m wheel tests/test_wheel.py $(ARGS)

proto: $(DEV) links
	$(PROTOC) --python_out=build/dev --pyi_out=build/dev --grpc_python_out=build/dev $(PROTOS:%=shoal/%)

# Fixes what later versions are compared with. Once a release, with the new name in RELEASE.
proto-release: $(DEV) links
	@mkdir -p $(dir $(RELEASE))
	$(PROTOC) --include_imports --descriptor_set_out=$(RELEASE) $(PROTOS:%=shoal/%)

# The installed layout as symbolic links, for the tools that cannot follow the editable install.
links:
	@mkdir -p build/dev/shoal
	@for part in $(PARTS); do ln -sfn ../../../$$part build/dev/shoal/$$part; done
	@echo '__version__: str' > build/dev/shoal/__init__.pyi

constraints: $(DEV)
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable --exclude shoal \
	  | sed 's/+cpu$$//'; } > build/constraints.txt && mv build/constraints.txt constraints.txt

clean:
	rm -rf build dist $(VENV) .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Build isolation is off: the tools below are pinned, fetched once and reused. CMake comes from PyPI where there is none.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(DEV): $(INPUTS) | $(BIN)/python
	$(PIP) scikit-build-core nanobind $(if $(shell command -v cmake),,cmake ninja)
	$(PIP) --no-build-isolation -e '.[all,test,dev]'
	@touch $(RUN) $(TORCH) $@

$(RUN): $(INPUTS) | $(BIN)/python
	$(PIP) scikit-build-core nanobind $(if $(shell command -v cmake),,cmake ninja)
	$(PIP) --no-build-isolation -e '.[agent]'
	@touch $@

$(TORCH): $(INPUTS) | $(BIN)/python
	$(PIP) scikit-build-core nanobind $(if $(shell command -v cmake),,cmake ninja)
	$(PIP) --no-build-isolation -e '.[all]'
	@touch $(RUN) $@
