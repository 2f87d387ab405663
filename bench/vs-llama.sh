#!/usr/bin/env bash
# Speed beside llama.cpp, both in this run on this machine: bench/vs-llama.sh [--rounds 3] [--models 0.5B,270M,1.5B]
exec python3 "$(dirname "$0")/vs_llama.py" "$@"
