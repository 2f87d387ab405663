"""A training run of PyTorch (+ PEFT) on the very packs that `shu train` sees: the other side of vs_curve.py and
vs_scratch.py. Packs come from bench/packs.c; loss, schedule, clipping and AdamW are those of the recipe.

Prints one JSON object: loss per step, held-out loss before and after, tokens/s over the timed steps.
"""
import argparse
import json
import math
import resource
import time

import numpy
import torch
import transformers

import torch_gradients


def read_packs(path):
    """[(tokens, targets, begin, position)] of every pack."""
    data, at, packs = numpy.fromfile(path, dtype=numpy.int32), 0, []
    while at < len(data):
        rows = int(data[at])
        packs.append(tuple(torch.from_numpy(data[at + 1 + i * rows:at + 1 + (i + 1) * rows].astype(numpy.int64))
                           for i in range(4)))
        at += 1 + 4 * rows
    return packs


def collate(packs):
    """A batch padded on the right; a mask only where a pack holds several sequences."""
    rows = max(len(p[0]) for p in packs)

    def padded(i, value):
        return torch.stack([torch.nn.functional.pad(p[i], (0, rows - len(p[i])), value=value) for p in packs])

    batch = {"input_ids": padded(0, 0), "position_ids": padded(3, 0)}
    begin, targets = padded(2, 0), padded(1, -1)
    if begin.any():
        row = torch.arange(rows)
        seen = (row[None, :, None] >= row[None, None, :]) & (begin[:, :, None] == begin[:, None, :])
        batch["attention_mask"] = torch.where(seen, 0.0, -torch.inf)[:, None]
    return batch, targets


def loss_sum(model, packs, dtype):
    batch, targets = collate(packs)
    if "attention_mask" in batch:
        batch["attention_mask"] = batch["attention_mask"].to(dtype)
    logits = model(**batch).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-1,
                                             reduction="sum")


def held_out_loss(model, packs, dtype):
    model.eval()
    with torch.no_grad():
        total = sum(loss_sum(model, [p], dtype).item() for p in packs)
    model.train()
    return total / sum(int((p[1] >= 0).sum()) for p in packs)


def rate(recipe, step, steps):
    high, low = recipe["learning_rate"], recipe["min_learning_rate"]
    warmup = math.ceil(recipe["warmup"] * steps)
    if step <= warmup:
        return high * step / warmup
    start, share = warmup, None
    if recipe["schedule"] == "wsd":
        start = max(warmup, steps - math.floor(recipe["decay"] * steps))
        if step <= start:
            return high
    done = (step - 1 - start) / (steps - start)
    share = 1 - math.sqrt(done) if recipe["schedule"] == "wsd" else 0.5 * (1 + math.cos(math.pi * done))
    return low + (high - low) * share


def new_network(network, vocab):
    config = transformers.LlamaConfig(
        hidden_size=network["width"], intermediate_size=network["ffn"], num_hidden_layers=network["layers"],
        num_attention_heads=network["heads"], num_key_value_heads=network["kv_heads"], head_dim=network["head_dim"],
        rms_norm_eps=network["norm_eps"], vocab_size=vocab, tie_word_embeddings=network["tied_output"],
        max_position_embeddings=network["context"], initializer_range=0.02, use_cache=False,
        attn_implementation="sdpa")
    model = transformers.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * network["layers"]))
    return model


def build(args, recipe):
    if args.model:
        import peft
        model = torch_gradients.load(args.model)
        return peft.get_peft_model(model, peft.LoraConfig(
            r=recipe["rank"], lora_alpha=recipe["alpha"], target_modules=torch_gradients.TARGETS,
            task_type="CAUSAL_LM"), autocast_adapter_dtype=False)
    return new_network(recipe["network"], args.vocab)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packs", required=True, help="prefix of the files of bench/packs.c")
    parser.add_argument("--recipe", required=True, help="JSON of the recipe")
    parser.add_argument("--model", help="F32 GGUF to adapt; without it a new network")
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    recipe = json.load(open(args.recipe))
    torch.set_num_threads(args.threads)
    torch.manual_seed(recipe["seed"])
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    model = build(args, recipe).to(dtype)
    model.train()
    learns = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW([{"params": [p for p in learns if p.ndim > 1]},
                                   {"params": [p for p in learns if p.ndim == 1], "weight_decay": 0.0}],
                                  lr=0.0, betas=(recipe["beta1"], recipe["beta2"]), eps=recipe["eps"],
                                  weight_decay=recipe["weight_decay"])
    packs, held = read_packs(f"{args.packs}.train"), read_packs(f"{args.packs}.held")
    before, losses, tokens, seconds = held_out_loss(model, held, dtype), [], 0, 0.0
    batch, micro = recipe["batch"], recipe["micro_batch"]
    for step in range(1, args.steps + 1):
        mine = packs[(step - 1) * batch:step * batch]
        counted = sum(int((p[1] >= 0).sum()) for p in mine)
        start, total = time.monotonic(), 0.0
        for i in range(0, len(mine), micro):
            loss = loss_sum(model, mine[i:i + micro], dtype) / counted
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(learns, recipe["clip"])
        for group in optimiser.param_groups:
            group["lr"] = rate(recipe, step, args.steps)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step > 1:  # the first one warms up
            seconds += time.monotonic() - start
            tokens += sum(len(p[0]) for p in mine)
        losses.append(total)
    print(json.dumps({"loss": losses, "held_out_before": before, "held_out": held_out_loss(model, held, dtype),
                      "train_tok_per_s": tokens / max(seconds, 1e-9), "torch": torch.__version__,
                      "transformers": transformers.__version__,
                      "parameters": sum(p.numel() for p in learns),
                      "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
