"""Training speed and peak memory against PyTorch + PEFT: both programs in turn, in one run, on this machine.

Qwen2 0.5B shape, 4 sequences of 256 tokens a step, rank-16 adapters on all projections (or every weight), gradient
clipping and AdamW in the timed part. The base is the Q4_K_M file here and random weights of the same shape in
PyTorch, whose speed does not depend on values. PyTorch runs in f32; in bf16 too where the processor has AVX512_BF16
or --bf16 asks for it (without those instructions PyTorch multiplies bf16 in software, minutes for one step).
"""
import argparse
import json
import os
import statistics

import peers

# name: (method, share of each sequence with a loss, least ratio of tokens/s, most share of the memory)
ROWS = {"lora": ("lora", 1.0, 1.6, 0.5), "lora-third": ("lora", 1 / 3, 2.0, 0.5), "full": ("full", 1.0, 1.4, 1.0)}


def torch_run(method, share, dtype, args):
    out = peers.run([peers.torch_python(), peers.ROOT / "bench/peft_step.py", "--method", method, "--dtype", dtype,
                     "--loss-share", share, "--steps", args.steps, "--threads", args.threads])
    return json.loads(out.splitlines()[-1])


def shu_run(method, share, dtype, args):
    argv = [peers.SHU, "bench", "train", "-m", peers.model("0.5B"), "--method", method, "--batch", 4, "--context", 256,
            "--steps", args.steps, "--threads", args.threads, "--loss-share", share, "--precision", dtype, "--json"]
    if method == "full":
        argv += ["--state", dtype]
    return json.loads(peers.run(argv))


def compare(row, args):
    method, share, _, _ = ROWS[row]
    samples = []
    for _ in range(args.rounds):
        for dtype in args.dtypes:
            theirs, ours = torch_run(method, share, dtype, args), shu_run(method, share, dtype, args)
            samples.append({"dtype": dtype, "torch": theirs, "shu": ours})
    return samples


def table(results):
    lines = ["| what | type | shu tok/s min/med/max | PyTorch min/med/max | ratio | bar | shu peak GB | "
             "PyTorch peak GB | share | bar |", "|---|---|---|---|---|---|---|---|---|---|"]
    for row, samples in results.items():
        _, _, least, most = ROWS[row]
        for dtype in sorted({s["dtype"] for s in samples}):
            mine = [s for s in samples if s["dtype"] == dtype]
            ours = [s["shu"]["train_tok_per_s"] for s in mine]
            theirs = [statistics.median(s["torch"]["train_tok_per_s"]) for s in mine]
            peaks = [max(s[side]["peak_rss_bytes"] for s in mine) / 1e9 for side in ("shu", "torch")]
            ratio = statistics.median(ours) / statistics.median(theirs)
            lines.append(f"| {row} | {dtype} | {peers.spread(ours)} | {peers.spread(theirs)} | {ratio:.2f} | "
                         f">= {least} | {peaks[0]:.2f} | {peaks[1]:.2f} | {peaks[0] / peaks[1]:.0%} | <= {most:.0%} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    args.dtypes = ["f32"] + (["bf16"] if args.bf16 or peers.has_bf16() else [])
    results = {row: compare(row, args) for row in args.rows.split(",")}
    peers.publish("vs-peft", table(results), {"results": results, "threads": args.threads})


if __name__ == "__main__":
    main()
