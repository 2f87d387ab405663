#!/usr/bin/env bash
# A new 10M-parameter Chinese model beside the same network and packs in PyTorch: bench/vs-scratch.sh [--steps 1200]
exec python3 "$(dirname "$0")/vs_scratch.py" "$@"
