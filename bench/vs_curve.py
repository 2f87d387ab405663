"""Loss curves of LoRA (rank 16, all projections) on the 0.5B model over the same packs of Chinese text, here and in
PyTorch + PEFT. Here the base is the Q4_K_M file, there the same values in f32. The precision is bf16 on both sides
where the processor has AVX512_BF16, else f32 (--dtype). Compared: the mean loss of the last tenth of the steps and the
held-out loss after them; the bar is 1%. Adapters start from different random numbers.
"""
import argparse
import json
import pathlib
import statistics
import tempfile

import peers

BAR = 0.01
RECIPE = {"rank": 16, "alpha": 32, "context": 64, "batch": 1, "micro_batch": 1, "schedule": "cosine",
          "learning_rate": 2e-4, "min_learning_rate": 0, "warmup": 0.05, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
          "weight_decay": 0.0, "clip": 1.0, "held_out": 0.05, "seed": 1, "spike": 0, "eval_every": 0,
          "checkpoint_every": 0, "all_tokens": True}


def write_data(path, recipe, steps):
    """Enough formula texts for the steps, some 200 characters each."""
    text, at = peers.chinese_text(steps * recipe["batch"] * recipe["context"] * 2), 0
    with open(path, "w", encoding="utf-8") as out:
        while at < len(text):
            out.write(json.dumps({"text": text[at:at + 230]}, ensure_ascii=False) + "\n")
            at += 230


def shu_run(folder, recipe, args):
    config = folder / "recipe.yaml"
    config.write_text(json.dumps({**recipe, "precision": args.dtype}))  # JSON is YAML
    peers.run([peers.SHU, "train", "--base", peers.model("0.5B"), "--data", folder / "data.jsonl", "--method", "lora",
               "--config", config, "--steps", args.steps, "--out", folder / "out", "-q"])
    lines = [json.loads(line) for line in open(folder / "out/metrics.jsonl")]
    return [m["loss"] for m in lines if "loss" in m], [m["held_out_loss"] for m in lines if m.get("held_out_loss")][-1]


def torch_run(folder, recipe, args):
    tool = peers.SHU.parent / "bench_packs"
    peers.run(["cmake", "--build", peers.SHU.parent, "--target", "bench_packs"])
    peers.run([tool, peers.model("0.5B"), folder / "data.jsonl", recipe["context"], recipe["seed"], recipe["held_out"],
               1, folder / "packs", "--all-tokens"])
    (folder / "recipe.json").write_text(json.dumps(recipe))
    out = peers.run([peers.torch_python(), peers.ROOT / "bench/torch_train.py", "--packs", folder / "packs",
                     "--recipe", folder / "recipe.json", "--model", peers.truth("0.5B"), "--steps", args.steps,
                     "--dtype", args.dtype])
    return json.loads(out.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--dtype", default="bf16" if peers.has_bf16() else "f32")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_data(folder / "data.jsonl", RECIPE, args.steps)
        ours, held = shu_run(folder, RECIPE, args)
        theirs = torch_run(folder, RECIPE, args)
    tail = max(1, args.steps // 10)
    ends = [statistics.mean(losses[-tail:]) for losses in (ours, theirs["loss"])]
    apart = [abs(a / b - 1) for a, b in ((ends[0], ends[1]), (held, theirs["held_out"]))]
    step_apart = [abs(a - b) for a, b in zip(ours, theirs["loss"])]
    lines = ["| what | shu | PyTorch + PEFT | apart | bar |", "|---|---|---|---|---|",
             f"| mean loss of the last {tail} of {args.steps} steps, {args.dtype} | {ends[0]:.4f} | {ends[1]:.4f} | "
             f"{apart[0]:.2%} | <= {BAR:.0%} |",
             f"| held-out loss after them (before: {theirs['held_out_before']:.4f}) | {held:.4f} | "
             f"{theirs['held_out']:.4f} | {apart[1]:.2%} | <= {BAR:.0%} |",
             f"| single steps apart | | | median {statistics.median(step_apart):.4f}, most {max(step_apart):.4f} | |"]
    peers.publish("vs-curve", lines, {"shu": ours, "shu_held_out": held, "torch": theirs, "recipe": RECIPE})
    if not all(a <= BAR for a in apart):
        raise SystemExit("vs-curve: beyond the bar")


if __name__ == "__main__":
    main()
