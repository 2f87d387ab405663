"""The same greedy text from every instruction set: 20 prompts, scalar, AVX2 and AVX-512 kernels.

All sets compute in one order of operations, so the texts must be equal, and with them every digit of the scores of the
eight likeliest tokens at each step. AVX-512 runs natively where the processor has it, else through the emulated kernels
of a test build (SHU=build/test/shu).
"""
import argparse
import json
import os
import sys

import peers

PROMPTS = [
    "当归补血汤由哪些药物组成？", "请用一句话介绍成都。", "写一首关于秋天的四行诗。", "什么是区块链？", "请把“早上好”翻译成英文、法文和日文。",
    "二加三乘以四等于多少？请写出步骤。", "列出三种常见的中药及其功效。", "身份证丢了应该怎么办？", "请解释光合作用。", "推荐一个两天的四川旅行计划。",
    "Name three rivers in Sichuan.", "Write a C function that reverses a string in place.",
    "Explain what a hash table is.",
    "What is the capital of Australia?", "Translate 'good evening' into Spanish and German.",
    "List the first ten prime numbers.",
    "Write a haiku about the sea.", "What does HTTP status code 404 mean?", "How do I undo the last git commit?",
    "Summarise the water cycle in two sentences.",
]


def answer(isa, model, prompt, tokens, threads):
    out = peers.run([peers.SHU, "run", model, "-p", prompt, "-n", tokens, "--temp", 0, "--threads", threads, "--json",
                     "--logprobs", 8, "--ctx", 512, "--speculate", 0], env={**os.environ, "SHU_ISA": isa})
    return json.loads(out)["logprobs"]


def gap(steps, i, other):
    """How far the token that the other run chose lies behind this run's own at step i."""
    scores = {t["id"]: t["logprob"] for t in steps[i]["top"]}
    return steps[i]["logprob"] - scores.get(other, float("-inf"))


def part(a, b):
    """Index where the two runs part, or None."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x["id"] != y["id"]:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="0.5B")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isas", default="scalar,avx2,avx512")
    args = parser.parse_args()
    isas = args.isas.split(",")
    texts, scores, bad = 0, 0, []
    for prompt in PROMPTS:
        runs = {isa: answer(isa, peers.model(args.model), prompt, args.tokens, args.threads) for isa in isas}
        for isa in isas[1:]:
            a, b = runs[isas[0]], runs[isa]
            at = part(a, b)
            texts += at is None
            scores += a == b
            if at is not None:
                bad.append((prompt, isa, at, (gap(a, at, b[at]["id"]), gap(b, at, a[at]["id"]))))
        print(f"{prompt[:30]}: done", file=sys.stderr)
    total = len(PROMPTS) * (len(isas) - 1)
    lines = ["| model | pairs | tokens | same text (bar: all) | same scores, every digit (bar: all) |",
             "|---|---|---|---|---|",
             f"| {args.model} | {total} ({' / '.join(isas)}) | {args.tokens} | {texts} | {scores} |"]
    lines += [f"- {isa}, token {at}, gaps {gaps[0]:.2e} {gaps[1]:.2e}: {prompt}" for prompt, isa, at, gaps in bad]
    peers.publish("isa-text", lines, {"texts": texts, "scores": scores, "pairs": total, "parted": bad})
    sys.exit(0 if texts == scores == total else 1)


if __name__ == "__main__":
    main()
