#!/usr/bin/env bash
# Quantising beside llama-quantize: types tensor by tensor, time, perplexity:
# bench/vs-quantize.sh [--models 0.5B,270M] [--targets Q4_K_M,Q8_0] [--chunks 8]
exec python3 "$(dirname "$0")/vs_quantize.py" "$@"
