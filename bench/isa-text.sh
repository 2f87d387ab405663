#!/usr/bin/env bash
# The same greedy text from scalar, AVX2 and AVX-512 kernels: SHU=build/test/shu bench/isa-text.sh [--tokens 32]
exec python3 "$(dirname "$0")/isa_text.py" "$@"
