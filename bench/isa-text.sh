#!/usr/bin/env bash
# The same greedy text from scalar, AVX2 and AVX-512 kernels: bench/isa-text.sh [--model 270M] [--tokens 10]
# Runs the build of `make test`: it offers the AVX-512 kernels through emulation where the processor lacks them.
root=$(cd "$(dirname "$0")/.." && pwd)
SHU="$root/build/test/shu" exec python3 "$root/bench/isa_text.py" "$@"
