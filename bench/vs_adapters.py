"""Adapters beside llama.cpp and PEFT, on a real model's weights as F32.

A random adapter is written by shu as GGUF and as PEFT folder. Then: PEFT loads the folder and gives shu's logits; shu
loads an adapter that PEFT made and gives PEFT's logits; llama.cpp with --lora, llama.cpp on the merged file, and shu
with --adapter and on the merged file continue a prompt with the same text; what the adapter costs a decoded token.
"""
import argparse
import json
import pathlib
import socket
import subprocess
import tempfile
import time
import urllib.request

import numpy as np

import peers

PROMPTS = ["The three longest rivers of China are", "中药当归的功效是", "def fibonacci(n):\n"]
TEXT = "The cat sat on the mat, and the model was trained on it. 数据库中的向量检索，是把文字变成数字之后再比较。\n" * 3


def build(name):
    folder = peers.SHU.parent
    peers.run(["cmake", "--build", folder, "--target", f"bench_{name}"])
    return folder / f"bench_{name}"


def distance(found, wanted):
    """Squared difference by the squared wanted values, and the share of equal best tokens."""
    return (float(((found - wanted) ** 2).sum() / (wanted ** 2).sum()),
            float((found.argmax(1) == wanted.argmax(1)).mean()))


def logits(model, adapter, folder):
    out = folder / "logits.f32"
    peers.run([peers.SHU, "logits", model, "--file", folder / "text.txt", "--out", out, "--ctx", 1024,
               *(["--adapter", adapter] if adapter else [])])
    return np.fromfile(out, "<f4")


def compare_with_peft(model, folder):
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    ids = peers.run([peers.SHU, "tokenize", model, "--ids"], stdin=open(folder / "text.txt", "rb")).split()
    (folder / "ids.json").write_text(json.dumps([int(i) for i in ids]))
    peers.run([peers.torch_python(), peers.ROOT / "bench/peft_logits.py", model, folder / "ids.json", folder / "ours",
               folder / "theirs", folder])
    rows = {}
    for name, adapter in (("base", None), ("ours", folder / "ours"), ("ours as GGUF", folder / "ours.gguf"),
                          ("theirs", folder / "theirs")):
        wanted = np.fromfile(folder / f"{name.split()[0]}.f32", "<f4").reshape(len(ids), -1)
        error, same = distance(logits(model, adapter, folder).reshape(wanted.shape), wanted)
        base = np.fromfile(folder / "base.f32", "<f4").reshape(wanted.shape)
        rows[name] = {"error": error, "same_best": same, "adapter_moves": distance(base, wanted)[0]}
    return rows


def llama_text(model, *options):
    """Greedy continuations of llama-server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [peers.llama("llama-server"), "-m", model, "--port", port, "-c", 512, "-t", 2, "-np", 1, *options]
    server = subprocess.Popen([str(a) for a in argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                time.sleep(0.2)
        texts = []
        for prompt in PROMPTS:
            body = json.dumps({"prompt": prompt, "n_predict": 40, "temperature": 0, "cache_prompt": False}).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", body,
                                             {"Content-Type": "application/json"})
            texts.append(json.loads(urllib.request.urlopen(request).read())["content"])
        return texts
    finally:
        server.terminate()
        server.wait()


def shu_text(model, *options):
    return [json.loads(peers.run([peers.SHU, "run", model, "-p", prompt, "--raw", "--temp", 0, "-n", 40, "--json",
                                  *options]))["answer"] for prompt in PROMPTS]


def compare_texts(model, folder):
    merged = folder / "merged.gguf"
    texts = {"shu --adapter": shu_text(model, "--adapter", folder / "ours.gguf"),
             "llama.cpp --lora": llama_text(model, "--lora", folder / "ours.gguf"),
             "shu without": shu_text(model)}
    for target in ("F32", "F16"):
        peers.run([peers.SHU, "model", "merge", model, folder / "ours.gguf", merged, "--type", target])
        texts[f"shu, merged {target}"] = shu_text(merged)
        texts[f"llama.cpp, merged {target}"] = llama_text(merged)
        merged.unlink()
    return texts


def cost(size, rank, folder):
    """Decoding with and without the adapter, on the quantised file, in turn."""
    model = peers.model(size)
    peers.run([build("random_adapter"), model, rank, 1, folder / "q.gguf", folder / "q"])
    rates = {"without": [], "with": []}
    for _ in range(3):
        for name, options in (("without", []), ("with", ["--adapter", folder / "q.gguf"])):
            out = json.loads(peers.run([peers.SHU, "bench", "speed", "-m", model, "--json", *options]))
            rates[name].append(out["decode_tok_per_s"])
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="0.5B")
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args()
    model = peers.truth(args.size)
    with tempfile.TemporaryDirectory(dir=peers.PEERS) as name:
        folder = pathlib.Path(name)
        peers.run([build("random_adapter"), model, args.rank, 7, folder / "ours.gguf", folder / "ours"])
        rows = compare_with_peft(model, folder)
        texts = compare_texts(model, folder)
        rates = cost(args.size, args.rank, folder)
    lines = ["| logits beside PEFT (f32) | squared error | same best token | the adapter moves them by |",
             "|---|---|---|---|"]
    lines += [f"| {n} | {r['error']:.2e} | {r['same_best']:.1%} | {r['adapter_moves']:.2e} |" for n, r in rows.items()]
    wanted = texts["shu --adapter"]
    lines += ["", "| greedy text of 40 tokens | equal to shu --adapter |", "|---|---|"]
    lines += [f"| {n} | {sum(a == b for a, b in zip(t, wanted))} of {len(wanted)} |" for n, t in texts.items()]
    lines += ["", f"decoding, tok/s min/med/max: without {peers.spread(rates['without'])}, with a rank-{args.rank} "
              f"adapter {peers.spread(rates['with'])}"]
    peers.publish("adapters", lines, {"logits": rows, "texts": texts, "decode_tok_per_s": rates})


if __name__ == "__main__":
    main()
