#!/usr/bin/env bash
# Training speed and memory beside PyTorch + PEFT, both in this run on this machine:
# bench/vs-peft.sh [--rounds 3] [--rows lora,lora-third,full] [--bf16]
exec python3 "$(dirname "$0")/vs_peft.py" "$@"
