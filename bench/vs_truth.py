"""Distance to the truth: mean KL divergence of the next-token distribution from that of the same weights in F32.

Truth: llama.cpp on an F32 GGUF dequantised from the file. Then llama.cpp and shu on the quantised file itself, over the
same windows of 512 tokens (second half scored, Chinese and English), and both perplexities on those windows.
"""
import argparse
import json
import pathlib
import re
import struct
import tempfile

import numpy as np

import peers

WINDOW = 512


def read_base(path):
    """llama-perplexity's --kl-divergence-base file: header, tokens, then per scored position a scale, a minimum and
    one uint16 log-probability per token."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    assert bytes(data[:8]) == b"_logits_", "not a llama-perplexity logits file"
    n_ctx, n_vocab, n_chunk = struct.unpack("<Iii", bytes(data[8:20]))
    tokens = data[20:20 + 4 * n_ctx * n_chunk].view(np.int32)
    row_words = 2 * ((n_vocab + 1) // 2) + 4
    rows = data[20 + 4 * n_ctx * n_chunk:].view(np.uint16).reshape(-1, row_words)
    return n_ctx, n_vocab, n_chunk, tokens, rows


def log_softmax(x):
    x = x.astype(np.float64)
    x -= x.max()
    return x - np.log(np.exp(x).sum())


def kl_of_logits(base, logits_path):
    """Mean KL(truth || shu) and share of equal top tokens over all scored positions."""
    n_ctx, n_vocab, n_chunk, _, rows = read_base(base)
    logits = np.memmap(logits_path, dtype=np.float32, mode="r").reshape(-1, n_vocab)
    per_chunk, first = n_ctx - 1 - n_ctx // 2, n_ctx // 2
    kl, same = [], 0
    for i, row in enumerate(rows):
        scale, low = row[:4].view(np.float32)
        truth = float(low) + float(scale) * row[4:4 + n_vocab].astype(np.float64)
        ours = log_softmax(logits[(i // per_chunk) * n_ctx + first + i % per_chunk])
        kept = truth > -16  # the file clamps what lies lower; llama-perplexity leaves it out as well
        kl.append(float((np.exp(truth[kept]) * (truth[kept] - ours[kept])).sum()))
        same += int(truth.argmax() == ours.argmax())
    return float(np.mean(kl)), same / len(kl), len(kl)


def llama_scores(size, text, base, threads):
    """Mean KL to the base file, share of equal top tokens, and perplexity over the same scored positions."""
    out = peers.run([peers.llama("llama-perplexity"), "-m", peers.model(size), "-f", text, "-c", WINDOW, "-t", threads,
                     "--kl-divergence-base", base, "--kl-divergence"]).decode()
    kl = float(re.search(r"Mean\s+KLD:\s+([\d.e+-]+)", out).group(1))
    same = float(re.search(r"Same top p:\s+([\d.]+)", out).group(1)) / 100
    perplexity = float(re.search(r"Mean PPL\(Q\)\s*:\s+([\d.]+)", out).group(1))
    return kl, same, perplexity


def trimmed_text(size, folder, chunks):
    """Chinese then English, each cut to an equal number of windows, so that neither language dominates."""
    path = pathlib.Path(folder) / "text.txt"
    half = chunks // 2 * WINDOW
    parts = []
    for text in (peers.chinese_text(60000), peers.english_text(120000)):
        low, high = 0, len(text)
        while high - low > 8:  # longest prefix of at most `half` tokens
            middle = (low + high) // 2
            count = json.loads(peers.run([peers.SHU, "tokenize", peers.model(size), "--count"],
                                         input=text[:middle].encode()))["tokens"]
            low, high = (middle, high) if count <= half else (low, middle)
        parts.append(text[:low])
    path.write_text("".join(parts), encoding="utf-8")
    return path


def compare(size, chunks, threads):
    with tempfile.TemporaryDirectory(dir=peers.PEERS) as folder:
        text, base, out = trimmed_text(size, folder, chunks), f"{folder}/base.kld", f"{folder}/out.f32"
        peers.run([peers.llama("llama-perplexity"), "-m", peers.truth(size), "-f", text, "-c", WINDOW, "-t", threads,
                   "--kl-divergence-base", base])
        theirs, their_same, their_ppl = llama_scores(size, text, base, threads)
        peers.run([peers.SHU, "logits", peers.model(size), "--file", text, "--out", out, "--ctx", WINDOW, "--threads",
                   threads, "-q"])
        ours, our_same, positions = kl_of_logits(base, out)
        our_ppl = json.loads(peers.run([peers.SHU, "perplexity", peers.model(size), "--file", text, "--ctx", WINDOW,
                                        "--threads", threads, "--json", "-q"]))["perplexity"]
    return {"positions": positions, "kl": ours, "kl_llama": theirs, "same_top": our_same, "same_top_llama": their_same,
            "ppl": our_ppl, "ppl_llama": their_ppl}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=10, help="windows of 512; 255 positions of each are scored")
    parser.add_argument("--models", default="0.5B,270M")
    args = parser.parse_args()
    results = {size: compare(size, args.chunks, args.threads) for size in args.models.split(",")}
    lines = ["| model | positions | KL shu | KL llama.cpp | ratio (bar <= 1.1) | same top shu / llama.cpp | "
             "perplexity shu | llama.cpp | difference (bar 0.5%) |", "|---|---|---|---|---|---|---|---|---|"]
    for size, r in results.items():
        lines.append(f"| {size} | {r['positions']} | {r['kl']:.6f} | {r['kl_llama']:.6f} | "
                     f"{r['kl'] / r['kl_llama']:.3f} | "
                     f"{r['same_top']:.2%} / {r['same_top_llama']:.2%} | {r['ppl']:.4f} | {r['ppl_llama']:.4f} | "
                     f"{r['ppl'] / r['ppl_llama'] - 1:+.3%} |")
    peers.publish("vs-truth", lines, {"results": results})


if __name__ == "__main__":
    main()
