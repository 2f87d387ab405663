"""Learning a byte-level BPE vocabulary, beside Hugging Face's tokenizers on the same text in this run: seconds (reading
excluded there, included here), bytes a token on text that neither has seen (bar: within 1%), and whether the merges are
the same. Text: national laws, herbal formulas, English documentation. llama.cpp must give the same ids with the file.
"""
import argparse
import json
import os
import pathlib
import statistics
import tempfile

import peers
from vs_tokenizers import read_gguf

PART = 4000  # characters; every twentieth part is held out


def write_texts(folder, size):
    text = peers.laws() + "\n" + peers.chinese_text(10**7) + "\n" + peers.english_text(10**7)
    parts = [text[i:i + PART] for i in range(0, len(text), PART)]
    seen = "".join(p for i, p in enumerate(parts) if i % 20)
    held = "".join(p for i, p in enumerate(parts) if i % 20 == 0)
    (folder / "seen.txt").write_text(seen * size, encoding="utf-8")
    (folder / "held.txt").write_text(held, encoding="utf-8")


def hugging_face(*args):
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    out = peers.run([peers.torch_python(), peers.ROOT / "bench/hf_tokenizer_train.py", *args], env=env)
    return json.loads(out.splitlines()[-1])


def same_ids_in_llama(model, folder):
    """The first lines of the held-out text as ids, here and in llama.cpp."""
    sample = folder / "sample.txt"
    sample.write_text((folder / "held.txt").read_text(encoding="utf-8")[:20000], encoding="utf-8")
    ours = [int(i) for i in peers.run([peers.SHU, "tokenize", model, "--ids"], stdin=open(sample, "rb")).split()]
    out = peers.run([peers.llama("llama-tokenize"), "-m", model, "-f", sample, "--ids", "--no-bos",
                     "--no-parse-special", "--log-disable"])
    return json.loads(out) == ours


def compare(folder, vocab, rounds):
    model, other = folder / "words.gguf", folder / "words.json"
    ours, theirs = [], []
    for _ in range(rounds):
        done = json.loads(peers.run([peers.SHU, "tokenizer", "train", "--files", folder / "seen.txt", "--vocab",
                                     vocab + 3, model, "--json"]))
        ours.append(done["seconds"])
        result = hugging_face(vocab, other, folder / "seen.txt")
        theirs.append(result["seconds"])
    held = folder / "held.txt"
    count = json.loads(peers.run([peers.SHU, "tokenize", model, "--count"], stdin=open(held, "rb")))["tokens"]
    merges = [m.decode() for m in read_gguf(model)["tokenizer.ggml.merges"]]
    return {"vocab": vocab, "bytes": done["bytes"], "pieces": done["distinct"], "shu_s": ours, "hf_s": theirs,
            "same_merges": merges == result["merges"], "same_ids_in_llama": same_ids_in_llama(model, folder),
            "bytes_per_token": held.stat().st_size / count,
            "hf_bytes_per_token": held.stat().st_size / hugging_face("--encode", other, held)["tokens"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab", type=int, nargs="+", default=[8000, 32000])
    parser.add_argument("--copies", type=int, default=1, help="of the text, to see how time grows")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_texts(folder, args.copies)
        for vocab in args.vocab:
            rows.append(compare(folder, vocab, args.rounds))
    lines = ["| vocabulary | text MB | distinct pieces | shu s min/med/max | tokenizers s min/med/max | ratio | "
             "bytes a token here, there (held out) | same merges | same ids in llama.cpp |", "|" + "---|" * 9]
    for r in rows:
        ratio = statistics.median(r["hf_s"]) / statistics.median(r["shu_s"])
        lines.append(f"| {r['vocab']} | {r['bytes'] / 1e6:.1f} | {r['pieces']} | {peers.spread(r['shu_s'])} | "
                     f"{peers.spread(r['hf_s'])} | {ratio:.1f} | {r['bytes_per_token']:.4f}, "
                     f"{r['hf_bytes_per_token']:.4f} | {r['same_merges']} | {r['same_ids_in_llama']} |")
    peers.publish("tokenizer-train", lines, {"rows": rows})
    for r in rows:
        if abs(r["bytes_per_token"] / r["hf_bytes_per_token"] - 1) > 0.01 or not r["same_ids_in_llama"]:
            raise SystemExit(f"vocabulary {r['vocab']} misses its bar")


if __name__ == "__main__":
    main()
