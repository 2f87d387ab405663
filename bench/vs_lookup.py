"""Prompt-lookup speculation: 50 prompts that hold the passages their answers quote.

Each prompt holds four formula entries and asks for one of them word for word. Measured on the same tokens: shu with
speculation, shu without (the text must be the same), and llama.cpp's plain decode (llama-bench at the same depth).
"""
import argparse
import json
import statistics

import peers


def prompts(count):
    rows = [r for r in peers.formulas() if 40 <= len(r["composition"]) <= 160]
    for i in range(count):
        four = rows[4 * i:4 * i + 4]
        passages = "\n".join(f"【{r['name']}】组成：{r['composition']}主治：{r['symptoms']}出处：{r['source']}" for r in four)
        yield f"资料：\n{passages}\n\n请逐字抄写资料中「{four[i % 4]['name']}」的组成、主治和出处。"


def answer(size, prompt, tokens, threads, drafts):
    out = json.loads(peers.run([peers.SHU, "run", peers.model(size), "-p", prompt, "-n", tokens, "--temp", 0,
                                "--threads", threads, "--speculate", drafts, "--json"]))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--model", default="1.5B")
    args = parser.parse_args()
    ours, plain, theirs, same, kept, proposed = [], [], [], 0, 0, 0
    for i, prompt in enumerate(prompts(args.count)):
        fast = answer(args.model, prompt, args.tokens, args.threads, 16)  # the program's default
        slow = answer(args.model, prompt, args.tokens, args.threads, 0)
        same += fast["answer"] == slow["answer"]
        kept, proposed = kept + fast["drafts"]["accepted"], proposed + fast["drafts"]["proposed"]
        rate = lambda r: (r["tokens"]["completion"] - 1) / (r["timings_ms"]["decode"] / 1000)
        ours.append(rate(fast))
        plain.append(rate(slow))
        if i % 10 == 0:
            out = peers.run([peers.llama("llama-bench"), "-m", peers.model(args.model), "-t", args.threads, "-p", 0,
                             "-n", 64, "-d", fast["tokens"]["prompt"], "-r", 1, "-o", "json"])
            theirs.append(json.loads(out)[0]["avg_ts"])
    ratio = statistics.median(ours) / statistics.median(theirs)
    lines = ["| model | prompts | same text | drafts kept | shu with tok/s | shu without | llama.cpp plain | "
             "ratio (bar >= 1.5) |",
             "|---|---|---|---|---|---|---|---|",
             f"| {args.model} | {args.count} | {same}/{args.count} | {kept}/{proposed} | {peers.spread(ours)} | "
             f"{peers.spread(plain)} | {peers.spread(theirs)} | {ratio:.2f} |"]
    peers.publish("vs-lookup", lines, {"with": ours, "without": plain, "llama": theirs, "same": same})


if __name__ == "__main__":
    main()
