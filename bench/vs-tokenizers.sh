#!/usr/bin/env bash
# Tokenising speed beside tiktoken and llama.cpp in one run: bench/vs-tokenizers.sh [--rounds 5] [--bytes 2000000]
exec python3 "$(dirname "$0")/vs_tokenizers.py" "$@"
