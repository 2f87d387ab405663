#!/usr/bin/env bash
# Adapters beside llama.cpp and PEFT, by hand (some minutes, 8 GB): bench/adapters.sh [--size 0.5B] [--rank 16]
exec python3 "$(dirname "$0")/vs_adapters.py" "$@"
