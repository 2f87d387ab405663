#!/usr/bin/env bash
# Loss and every LoRA gradient of one training step of the 0.5B model against PyTorch + PEFT in f32:
# bench/vs-torch-step.sh [--batch 2] [--context 64]
exec python3 "$(dirname "$0")/vs_torch_step.py" "$@"
