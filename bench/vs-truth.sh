#!/usr/bin/env bash
# KL to the F32 truth and perplexity beside llama.cpp: bench/vs-truth.sh [--chunks 10] [--models 0.5B,270M]
exec python3 "$(dirname "$0")/vs_truth.py" "$@"
