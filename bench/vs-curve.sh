#!/usr/bin/env bash
# Loss curve of 200 LoRA steps on real text beside PyTorch + PEFT, same packs: bench/vs-curve.sh [--steps 200]
exec python3 "$(dirname "$0")/vs_curve.py" "$@"
