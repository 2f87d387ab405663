"""Speed against llama.cpp: both programs in turn, in one run, on this machine.

Per model: prefill 512, decode 64 at empty context; for the 0.5B also decode after 4,096 tokens, and the time to
the first token of a 30-token prompt from process start. The bound is memory speed (best of five reads of 1 GiB in
the same run) over the bytes of all tensors read per token.
"""
import argparse
import json
import statistics
import subprocess
import time

import peers

BARS = {  # (model, what): least ratio to llama.cpp, least share of the bound
    ("0.5B", "decode"): (1.3, 0.80), ("270M", "decode"): (1.3, 0.80), ("1.5B", "decode"): (0.98, 0.92),
    ("0.5B", "prefill"): (2.0, None), ("270M", "prefill"): (2.0, None), ("1.5B", "prefill"): (2.0, None),
    ("0.5B", "decode@4096"): (1.25, None),
}


def llama_bench(path, threads, prefill, decode, depth=0):
    out = peers.run([peers.llama("llama-bench"), "-m", path, "-t", threads, "-p", prefill, "-n", decode, "-d", depth,
                     "-r", 1, "-o", "json"])
    return {("prefill" if row["n_prompt"] else "decode"): row["avg_ts"] for row in json.loads(out)}


def shu_bench(path, threads, prefill, decode, depth=0):
    out = json.loads(peers.run([peers.SHU, "bench", "speed", "-m", path, "--threads", threads, "--prefill", prefill,
                                "--decode", decode, "--depth", depth, "--runs", 1, "--json"]))
    return {"prefill": out["prefill_tok_per_s"], "decode": out["decode_tok_per_s"], "bound": out["bound_tok_per_s"],
            "rss": out["rss_bytes"], "load": out["load_s"], "read": out["read_gb_per_s"]}


def first_token(path, threads):
    """Seconds from process start to the first token of a 30-token prompt, file cache warm."""
    prompt = "请用一句话说明当归补血汤由哪些药物组成，各用多少，并说明它主治什么病症以及出处。"
    start = time.monotonic()
    child = subprocess.Popen([str(a) for a in [peers.SHU, "run", path, "-p", prompt, "--raw", "-n", 1, "--temp", 0,
                              "--threads", threads, "--ignore-end"]], stdout=subprocess.PIPE)
    child.stdout.read(1)
    seconds = time.monotonic() - start
    child.wait()
    return seconds


def compare(size, threads, rounds):
    path, samples = peers.model(size), {}
    for _ in range(rounds):
        theirs, ours = llama_bench(path, threads, 512, 64), shu_bench(path, threads, 512, 64)
        for what in ("prefill", "decode"):
            samples.setdefault(what, []).append((ours[what], theirs[what], ours["bound"]))
        samples.setdefault("rss", []).append(ours["rss"])
        if size == "0.5B":
            samples.setdefault("decode@4096", []).append(
                (shu_bench(path, threads, 0, 32, 4096)["decode"], llama_bench(path, threads, 0, 32, 4096)["decode"], 0))
            samples.setdefault("first_token_s", []).extend(first_token(path, threads) for _ in range(3))
    return samples


def table(results):
    lines = ["| model | what | shu tok/s min/med/max | llama.cpp min/med/max | ratio | bar | share of bound | bar |",
             "|---|---|---|---|---|---|---|---|"]
    for size, samples in results.items():
        for what, rows in samples.items():
            if (size, what) not in BARS:
                continue
            ours, theirs, bound = ([r[i] for r in rows] for i in range(3))
            ratio = statistics.median(ours) / statistics.median(theirs)
            least, least_share = BARS[size, what]
            share = statistics.median(o / b for o, b in zip(ours, bound)) if least_share else None
            lines.append(f"| {size} | {what} | {peers.spread(ours)} | {peers.spread(theirs)} | {ratio:.2f} | "
                         f">= {least} | {f'{share:.0%}' if share else ''} | "
                         f"{f'>= {least_share:.0%}' if share else ''} |")
        if "first_token_s" in samples:
            lines.append(f"| {size} | first token, s | {peers.spread(samples['first_token_s'])} | | | <= 1.0 | | |")
        lines.append(f"| {size} | peak memory, MB | {peers.spread([r / 1e6 for r in samples['rss']])} | | | | | |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default="0.5B,270M,1.5B")
    args = parser.parse_args()
    results = {size: compare(size, args.threads, args.rounds) for size in args.models.split(",")}
    peers.publish("vs-llama", table(results), {"results": results, "threads": args.threads})


if __name__ == "__main__":
    main()
