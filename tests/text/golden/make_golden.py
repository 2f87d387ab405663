#!/usr/bin/env python3
"""Makes the *.json of this folder: small vocabularies, texts, and the ids that llama.cpp gives.

    tests/text/golden/make_golden.py --llama-tokenize .../llama-tokenize

Each vocabulary is trained here on a few lines (so that nothing is copied from a model), written to a vocabulary-only
GGUF and read by llama-tokenize (llama.cpp of llama-cpp-python 0.3.36). Rerunning gives the same files.
"""
import argparse
import collections
import json
import math
import pathlib
import re
import struct
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
CORPUS = """The quick brown fox jumps over the lazy dog. It's the cat's, isn't it? We'll see what they've done to them.
当归补血汤由黄芪、当归组成。主治血虚发热，面红目赤，烦渴欲饮。补中益气汤主治脾胃气虚，四君子汤益气健脾。
def encode(text):\n    return [vocab[token] for token in text.split()]\nfor (int i = 0; i < count; i++) { sum += a[i]; }
The model answers the question with the text of the source; the source answers the question of the reader.
中华人民共和国成立于一九四九年十月一日。中国人民解放军的中国人民。人民的问题，人民的回答。今天天气很好，我们去公园。
Числа 12345 и 67890, naïve café, über; 日本語のテキスト と 한국어 텍스트; 😀😀👍 — “quotes” … done.
""" * 2
TEXTS = [
    "The quick brown fox", " the  source,\n\n  of the   reader\t\tdone", "It's isn't WE'LL they've 'S 'x",
    "补中益气汤由当归组成。",
    "中国人民的回答，今天我们去。", "人民中华共和国人", "龘靐齉 黄芪\u3000当归", "123456789 x1y22 ٣٤ ½",
    "def f(a, b):\n        return a[i] += 1;\r\n\r\n# end", "😀👍👨‍👩‍👧 🇨🇳", "naïve über日本語テ한국어\u00a0café",
    "<|im_start|>user\n你好<|im_end|>\n",
    "a<tool>b</tool> <s>x</s><unk>", "▁literal ▁▁mark", " ", "   ", "\n", "",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "the the the  questionquestionquestion 人民人民人民人民人民人民人民人民人民人民", "\x01\x02\x7f\u200b\ufeff\u2028x", "…—“”（）「」",
]
ALPHABET = {b: chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]}
ALPHABET.update({b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in ALPHABET)})


def train_bpe(merge_count):
    words = collections.Counter(tuple(ALPHABET[b] for b in w.encode()) for w in re.findall(r"\s?\S{1,12}|\s+", CORPUS))
    merges = []
    for _ in range(merge_count):
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        merged = collections.Counter()
        for word, n in words.items():
            out = []
            for symbol in word:
                if out and (out[-1], symbol) == best:
                    out[-1] += symbol
                else:
                    out.append(symbol)
            merged[tuple(out)] += n
        words = merged
    return merges


def bpe(pre, **flags):
    merges = train_bpe(420)
    tokens = list(dict.fromkeys([ALPHABET[b] for b in range(256)] + [a + b for a, b in merges]))
    types = [1] * len(tokens)
    for text, kind in (("<|im_start|>", 3), ("<|im_end|>", 3), ("<tool>", 4), ("</tool>", 4), ("[PAD1]", 5)):
        tokens.append(text)
        types.append(kind)
    if pre == "llama-bpe":  # words that no merge leads to
        for text in ("questionquestionquestion", "Ġunreached"):
            tokens.append(text)
            types.append(1)
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "types": types, "merges": [f"{a} {b}" for a, b in merges],
            "bos": len(types) - 1, "eos": tokens.index("<|im_end|>"), "unk": -1, "add_space_prefix": False} | flags


def pieces(limit):
    """Frequent substrings with word starts as U+2581, most frequent first."""
    counts = collections.Counter()
    for word in re.findall(r"\s?\S+", CORPUS.replace("\n", " ")):
        word = word.replace(" ", "▁")
        for i in range(len(word)):
            for j in range(i + 1, min(len(word), i + 6) + 1):
                counts[word[i:j]] += 1
    return sorted(counts.items(), key=lambda item: (-item[1] * len(item[0]), item[0]))[:limit]


def spm(prefix):
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + ["<tool>", "</tool>", "\n\n", "  "]
    types = [2, 3, 3] + [6] * 256 + [4] * 4
    scores = [0.0] * len(tokens)
    for rank, (text, _) in enumerate(pieces(600)):
        tokens.append(text)
        types.append(1)
        scores.append(-float(rank // 2))  # neighbours tie
    return {"model": "llama", "pre": "default", "tokens": tokens, "types": types, "scores": scores, "bos": 1,
        "eos": 2, "unk": 0,
            "add_space_prefix": prefix}


def unigram():
    tokens, types, scores = ["<pad>", "</s>", "<unk>", "<tool>", "</tool>"], [3, 3, 2, 4, 4], [0.0] * 5
    found = pieces(600)
    total = sum(n for _, n in found)
    for text, n in found:
        tokens.append(text)
        types.append(1)
        scores.append(struct.unpack("f", struct.pack("f", math.log(n / total)))[0])
    return {"model": "t5", "pre": "default", "tokens": tokens, "types": types, "scores": scores, "bos": -1,
        "eos": 1, "unk": 2,
            "add_space_prefix": True}


def write_gguf(path, vocab):
    string = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()
    pairs = [("general.architecture", 8, string("t5" if vocab["model"] == "t5" else "llama"))]
    array = lambda kind, items, form: struct.pack("<IQ", kind, len(items)) + b"".join(form(i) for i in items)
    prefix = "tokenizer.ggml."
    pairs += [(prefix + "model", 8, string(vocab["model"])), (prefix + "pre", 8, string(vocab["pre"])),
              (prefix + "tokens", 9, array(8, vocab["tokens"], string)),
              (prefix + "token_type", 9, array(5, vocab["types"], lambda i: struct.pack("<i", i))),
              (prefix + "add_space_prefix", 7, struct.pack("<?", vocab["add_space_prefix"]))]
    if "scores" in vocab:
        pairs.append((prefix + "scores", 9, array(6, vocab["scores"], lambda f: struct.pack("<f", f))))
    if "merges" in vocab:
        pairs.append((prefix + "merges", 9, array(8, vocab["merges"], string)))
    for key, name in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("unk", "unknown_token_id")):
        if vocab[key] >= 0:
            pairs.append((prefix + name, 4, struct.pack("<I", vocab[key])))
    with open(path, "wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)))
        for key, kind, data in pairs:
            file.write(string(key) + struct.pack("<I", kind) + data)


def ask(program, gguf, text, special, folder):
    path = pathlib.Path(folder) / "text"
    path.write_bytes(text.encode())
    done = subprocess.run([program, "-m", gguf, "-f", path, "--ids", "--no-bos", "--no-escape", "--log-disable"]
                          + ([] if special else ["--no-parse-special"]), capture_output=True, check=True)
    return json.loads(done.stdout.decode())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-tokenize", required=True)
    args = parser.parse_args()
    vocabularies = {"bpe_qwen2": bpe("qwen2"), "bpe_llama3": bpe("llama-bpe", ignore_merges=True),
        "bpe_gpt2": bpe("gpt-2"),
                    "spm_prefix": spm(True), "spm_plain": spm(False), "unigram": unigram()}
    for name, vocab in vocabularies.items():
        with tempfile.TemporaryDirectory() as folder:
            gguf = f"{folder}/vocab.gguf"
            write_gguf(gguf, vocab)
            vocab["cases"] = [{"text": t, "special": s, "ids": ask(args.llama_tokenize, gguf, t, s, folder)}
                              for t in TEXTS if t for s in (True, False)]
        vocab = {"made_by": "llama.cpp of llama-cpp-python 0.3.36, make_golden.py"} | vocab
        text = json.dumps(vocab, ensure_ascii=False, separators=(",", ":"))
        (HERE / f"{name}.json").write_text(text.replace('},{"text"', '},\n{"text"').replace(',"cases"',
            ',\n"cases"') + "\n")
        print(name, len(vocab["tokens"]), "tokens,", sum(len(c["ids"]) for c in vocab["cases"]), "ids")


if __name__ == "__main__":
    main()
