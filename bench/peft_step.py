"""One training run of PyTorch + PEFT on the Qwen2 shape, the yardstick of vs_peft.py; run by the environment of
peers.torch_python(). Prints one JSON object: tokens/s of each timed step, peak resident bytes, losses.

Weights are random (speed does not depend on them) and tokens are random; attention is PyTorch's sdpa. The peak counts
from before the model exists, as a user would see it.
"""
import argparse
import json
import resource
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

SHAPES = {
    "0.5B": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                 num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=False),
    "1.5B": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
                 num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True),
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build(args, dtype):
    torch.set_default_dtype(dtype)
    config = Qwen2Config(**SHAPES[args.shape], attn_implementation="sdpa", dtype=dtype, use_cache=False)
    model = Qwen2ForCausalLM(config)
    if args.method == "lora":
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS,
                                                 task_type="CAUSAL_LM"), autocast_adapter_dtype=False)
    torch.set_default_dtype(torch.float32)
    if args.recompute:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="0.5B")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loss-share", type=float, default=1.0)
    parser.add_argument("--recompute", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    model = build(args, torch.bfloat16 if args.dtype == "bf16" else torch.float32)
    learns = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learns, lr=1e-4)
    rates, losses = [], []
    for step in range(args.steps + 1):  # the first one warms up
        tokens = torch.randint(0, 150000, (args.batch, args.context))
        labels = tokens.clone()
        labels[:, :int(args.context * (1 - args.loss_share))] = -100
        start = time.monotonic()
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learns, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seconds = time.monotonic() - start
        losses.append(loss.item())
        if step:
            rates.append(tokens.numel() / seconds)
    print(json.dumps({"train_tok_per_s": rates, "loss": losses,
                      "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
