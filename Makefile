# The front door. CMake and Ninja do the work in build/<preset>; every target here is a few lines on purpose.
# `make demo`, `make test` and `make check` install what is missing (Debian packages) and need nothing done before.

MODEL        ?= qwen2.5-coder-0.5b-instruct
PREFIX       ?= /usr/local
FUZZ_SECONDS ?= 600
SOAK_SECONDS ?= 3600

.DELETE_ON_ERROR:
.PHONY: all help demo test check bench fuzz asan tsan soak install clean tidy format aarch64 clang
.DEFAULT_GOAL := all

all: ## build build/release/shu
	@tools/build release shu

help: ## list these targets
	@awk -F': *## *' '/^[a-z0-9]+:.*## / { split($$1, t, ":"); printf "  make %-9s %s\n", t[1], $$2 }' $(MAKEFILE_LIST)
	@echo "  variables: MODEL=$(MODEL) FUZZ_SECONDS=$(FUZZ_SECONDS) SOAK_SECONDS=$(SOAK_SECONDS) PREFIX=$(PREFIX)"

demo: ## fresh machine: install, build, fetch a model, chat (without a terminal: two questions)
	@tools/install-deps build
	@tools/build release shu
	@tools/demo build/release/shu $(MODEL)

test: ## fresh machine: install, build, run every test
	@tools/install-deps test
	@tools/build test all
	@tools/run-tests test

check: ## what CI adds to the tests: format, tidy, clang, sanitizers, a minute per fuzzer, aarch64
	@tools/check

asan: ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@tools/install-deps test
	@tools/build asan all
	@tools/run-tests asan

tsan: ## the tests that use threads under ThreadSanitizer
	@tools/install-deps test
	@tools/build tsan all
	@tools/run-tests tsan -L threads

clang: ## build with clang, warnings as errors
	@tools/install-deps check
	@tools/build clang all

aarch64: ## cross build for ARM and its tests under qemu-user
	@tools/install-deps check
	@tools/build aarch64 all
	@tools/run-tests aarch64 -L portable

fuzz: ## every fuzzer for FUZZ_SECONDS, two at a time
	@tools/install-deps check
	@tools/build fuzz all
	@tools/fuzz $(FUZZ_SECONDS)

soak: ## the tests over and over under the sanitizers for SOAK_SECONDS, in random order
	@tools/install-deps test
	@tools/soak $(SOAK_SECONDS)

bench: ## all benchmarks beside their yardsticks (long; needs the peers, see bench/)
	@tools/build release shu
	@tools/build test shu
	@status=0; for script in bench/*.sh; do \
	    echo "== $$script"; SHU=build/release/shu $$script || status=1; done; exit $$status

tidy: ## house rules: layers, banned functions, lengths
	@tools/tidy

format: ## rewrite the sources as clang-format wants them
	@git ls-files -z 'src/*.[ch]' 'include/*.h' 'tests/*.[ch]' | xargs -0 clang-format -i

install: ## install shu below PREFIX
	@tools/build release shu
	@cmake --install build/release --prefix $(PREFIX) >/dev/null && echo "installed $(PREFIX)/bin/shu"

clean: ## remove build/
	@rm -rf build
