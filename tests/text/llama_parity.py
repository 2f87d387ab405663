#!/usr/bin/env python3
"""Token ids of shu and of llama.cpp on the same texts; all must be equal.

    tests/text/llama_parity.py --shu build/release/shu --llama-tokenize …/llama-tokenize --model A.gguf [--model B.gguf]
                               [--text FILE …] [--bytes 2000000] [--seed 1]

The texts are made here, the same on the same machine: documentation, man pages and Python sources that are installed,
Chinese from man pages and fortunes (Debian manpages-zh, fortunes-zh) and from the code charts, emoji with joiners and
flags, every kind of white space, spellings of special tokens, control characters. Each is compared with special tokens
parsed and not parsed. llama.cpp replaces broken UTF-8 before byte-level BPE, so broken bytes are checked by a round
trip in the unit tests instead. Exit code 0: all equal.
"""
import argparse
import glob
import gzip
import random
import subprocess
import sys
import tempfile

EMOJI = ["😀", "❤️", "👨‍👩‍👧‍👦", "🇨🇳", "🏳️‍🌈", "👍🏽", "1️⃣", "🧑‍⚕️", "\u200d", "\ufe0f"]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|fim_prefix|>", "<tool_call>", "</tool_call>", "</s>",
           "<s>", "<bos>", "<eos>", "<pad>", "<unk>", "<unused7>", "<start_of_turn>", "<end_of_turn>", "[multimodal]",
           "<h1>", "</table>", "[PAD151700]", "<0x0A>", "▁", "<|im_start", "|>"]
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\t\t", "\u00a0", "\u3000", "\u2003", "\u2028", "\u0085",
          "\x0b", "\x1c"]
BITS = ["'s", "'LL", "'ve", "'ſ", "'", "...", "==", "123456", "٣٤", "½", "Ⅷ", "e\u0301", "ﬁ", "_", "a" * 300,
        "=" * 200, " " * 70, "\n" * 40, "0" * 90]
RANGES = [(0x20, 0x7f), (0, 0x20), (0x7f, 0x600), (0x600, 0x1000), (0x1000, 0x3000), (0x3000, 0x3400), (0x3400, 0xa000),
          (0xa000, 0xd800), (0xe000, 0x10000), (0x1f000, 0x1fb00), (0x20000, 0x323b0), (0x10000, 0x20000),
          (0xe0000, 0xe0200)]


def read_all(patterns, limit):
    out, size = [], 0
    for path in sorted(p for pattern in patterns for p in glob.glob(pattern)):
        try:
            data = open(path, "rb").read()
            text = (gzip.decompress(data) if path.endswith(".gz") else data).decode("utf-8")
        except (OSError, UnicodeDecodeError, EOFError):
            continue
        out.append(text[:60_000])
        size += len(out[-1].encode())
        if size > limit:
            break
    return "".join(out).replace("\x00", "")


def mixed(rng, size, sources):
    out, total = [], 0
    while total < size:
        kind = rng.randrange(8)
        if kind < 4 and sources:
            text = rng.choice(sources)
            at = rng.randrange(max(1, len(text) - 200))
            piece = text[at:at + rng.randrange(1, 200)]
        elif kind == 4:
            low, high = rng.choice(RANGES)
            piece = "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 60))).replace("\x00", "")
        else:
            choices = [EMOJI, SPECIAL, SPACES, BITS]
            piece = "".join(rng.choice(rng.choice(choices)) for _ in range(rng.randrange(1, 12)))
        out.append(piece)
        total += len(piece.encode())
    return "".join(out)


def make_texts(args):
    rng = random.Random(args.seed)
    share = args.bytes // 4
    english = read_all(["/usr/share/doc/*/README*", "/usr/share/doc/*/copyright", "/usr/share/man/man1/*.gz"], share)
    code = read_all(["/usr/lib/python3*/*.py", "/usr/include/*.h"], share)
    chinese = read_all(["/usr/share/games/fortunes/*.u8", "/usr/share/man/zh_CN/man*/*.gz",
        "/usr/share/doc/*zh*/*"], share)
    if len(chinese.encode()) < share // 4:  # none installed: characters by the code charts, common ones more often
        chinese += "".join(chr(0x4e00 + int(rng.random() ** 2 * 0x5200)) if rng.random() < 0.9 else
            rng.choice("，。、！？《》")
                           for _ in range(share // 3))
    texts = {"english": english, "code": code, "chinese": chinese}
    texts["mixed"] = mixed(rng, share, [t for t in texts.values() if t])
    for path in args.text:
        texts[path] = open(path, encoding="utf-8", newline="").read()
    return texts


def ids_of(argv, stdin=None):
    done = subprocess.run(argv, stdin=stdin, capture_output=True)
    if done.returncode:
        sys.exit(f"{argv[0]} failed: {done.stderr.decode('utf-8', 'replace')[-300:]}")
    return [int(t) for t in done.stdout.decode().replace("[", " ").replace("]", " ").replace(",", " ").split()]


def compare(args, model, name, path, special):
    theirs = ids_of([args.llama_tokenize, "-m", model, "-f", path, "--ids", "--no-bos", "--no-escape", "--log-disable"]
                    + ([] if special else ["--no-parse-special"]))
    with open(path, "rb") as stdin:
        ours = ids_of([args.shu, "tokenize", model, "--ids"] + (["--special"] if special else []), stdin)
    wrong = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)
    if wrong is None and len(ours) != len(theirs):
        wrong = min(len(ours), len(theirs))
    verdict = "equal" if wrong is None else f"DIFFER at {wrong}: {ours[wrong:wrong + 5]} / {theirs[wrong:wrong + 5]}"
    mode = "parsed" if special else "plain"
    print(f"{model.rsplit('/', 1)[-1]:40} {name:10} special {mode:6} {len(ours):9} tokens  {verdict}", flush=True)
    return wrong is None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shu", default="build/release/shu")
    parser.add_argument("--llama-tokenize", required=True)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--bytes", type=int, default=2_400_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    texts = make_texts(args)
    print(f"{sum(len(t.encode()) for t in texts.values())} bytes: "
          + ", ".join(f"{name} {len(t.encode())}" for name, t in texts.items()))
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            path = f"{folder}/text"
            with open(path, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            for model in args.model:
                for special in (True, False):
                    good &= compare(args, model, name.rsplit("/", 1)[-1], path, special)
    print("all equal" if good else "NOT EQUAL")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
