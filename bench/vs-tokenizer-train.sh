#!/usr/bin/env bash
# Learning a vocabulary beside Hugging Face's tokenizers: bench/vs-tokenizer-train.sh [--rounds 3] [--vocab 8000 32000]
exec python3 "$(dirname "$0")/vs_tokenizer_train.py" "$@"
