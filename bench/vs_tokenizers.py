"""Tokenising speed, one thread, beside tiktoken and llama.cpp on the same texts in this run.

tiktoken's Encoding is made from the GGUF's own vocabulary with Qwen's regular expression. shu is a fresh process each
round (its cache is cold), tiktoken and llama.cpp keep their process; the best round counts for each. All must give the
same number of tokens. tiktoken comes from `pip install tiktoken`; without it only llama.cpp is compared.
"""
import argparse
import json
import os
import struct
import time

import peers

QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")


def read_gguf(path):
    """Metadata of a GGUF file as a dict; enough of the format for that."""
    file = open(path, "rb")
    unpack = lambda form: struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))[0]
    text = lambda: file.read(unpack("Q"))
    forms = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def value(kind):
        if kind == 8:
            return text()
        if kind != 9:
            return unpack(forms[kind])
        item, count = unpack("I"), unpack("Q")
        return [value(item) for _ in range(count)]

    file.read(16)
    return {text().decode(): value(unpack("I")) for _ in range(unpack("Q"))}


def byte_alphabet():
    """GPT-2's printable spelling of bytes: character -> byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


def tiktoken_encoding(model):
    import tiktoken
    meta, alphabet = read_gguf(model), byte_alphabet()
    ranks, marks = {}, {}
    for i, (token, kind) in enumerate(zip(meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"])):
        if kind == 1:
            ranks[bytes(alphabet[c] for c in token.decode())] = i
        elif kind == 4:  # user-defined: always one token, as in llama.cpp
            marks[token.decode()] = i
    return tiktoken.Encoding("qwen2", pat_str=QWEN2, mergeable_ranks=ranks, special_tokens=marks)


def best(rounds, once):
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        count = once()
        seconds.append(time.perf_counter() - start)
    return count, min(seconds)


def shu(model, path, rounds):
    argv = [peers.SHU, "tokenize", model, "--count"]
    runs = [json.loads(peers.run(argv, stdin=open(path, "rb"))) for _ in range(rounds)]
    return runs[0]["tokens"], min(r["seconds"] for r in runs)


def llama_program():
    library = peers.llama("llama-tokenize").parent
    program = peers.PEERS / "llama_tokenize"
    source = peers.ROOT / "bench/llama_tokenize.c"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        include = peers.llama_source()
        peers.run(["cc", "-O2", "-o", program, source, f"-I{include}/include", f"-I{include}/ggml/include",
                   f"-L{library}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{library}"])
    return program


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=2_000_000)
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    texts = {"English": peers.english_text(args.bytes), "Chinese": peers.chinese_text(args.bytes // 3)}
    lines = ["| model | text | bytes | tokens | shu MB/s | tiktoken MB/s | llama.cpp MB/s | shu / tiktoken |",
             "|" + "---|" * 8]
    data = []
    for size in ("0.5B", "270M"):
        try:
            encoding = tiktoken_encoding(peers.model(size)) if size == "0.5B" else None
        except ImportError:
            encoding = None
        for language, text in texts.items():
            path = peers.PEERS / f"tokenize-{language}.txt"
            path.write_text(text, encoding="utf-8")
            megabytes = path.stat().st_size / 1e6
            count, ours = shu(peers.model(size), path, args.rounds)
            row = {"model": size, "text": language, "bytes": path.stat().st_size, "tokens": count,
                   "shu": megabytes / ours}
            if encoding:
                other, seconds = best(args.rounds, lambda: len(encoding.encode(text, allowed_special="all")))
                assert other == count, f"tiktoken gives {other} tokens, shu {count}"
                row["tiktoken"] = megabytes / seconds
            out = json.loads(peers.run([llama_program(), peers.model(size), path, args.rounds]))
            assert out["tokens"] == count, f"llama.cpp gives {out['tokens']} tokens, shu {count}"
            row["llama"] = megabytes / out["seconds"]
            peer = f"{row['tiktoken']:.1f} | {row['llama']:.2f} | {row['shu'] / row['tiktoken']:.2f}" if encoding else \
                f"| {row['llama']:.2f} |"
            lines.append(f"| {size} | {language} | {row['bytes']} | {count} | {row['shu']:.1f} | {peer} |")
            data.append(row)
    peers.publish("tokenizers", lines, {"rows": data})


if __name__ == "__main__":
    main()
