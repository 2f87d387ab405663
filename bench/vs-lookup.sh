#!/usr/bin/env bash
# Prompt-lookup speculation against llama.cpp's plain decode: bench/vs-lookup.sh [--count 50] [--model 1.5B]
exec python3 "$(dirname "$0")/vs_lookup.py" "$@"
