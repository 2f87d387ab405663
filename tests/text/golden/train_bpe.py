"""What Hugging Face's tokenizers learns from the text of tests/text/test_train_bpe.c: prints the SHA-256 of its merges,
one a line, for each case of that test. Made with tokenizers 0.23 (pip install tokenizers)."""
import hashlib
import json

import tokenizers

WORDS = ["the", "cat", "sat", "on", "mat", "model", "modelling", "2024", "1989", "it's", "we'll", "they're", "特征",
         "向量", "向前", "数据库", "数据结构", "，", "。", "你好吗", "你们好", "!?", "...", "\n", "\n\n", "  ", "\t", "naïve"]
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
RULES = {"QWEN2": HEAD + r"\p{N}|" + TAIL, "LLAMA3": HEAD + r"\p{N}{1,3}|" + TAIL,
         "GPT2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"}


def text():
    state, out = 1, []
    for _ in range(6000):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(WORDS[(state >> 33) % len(WORDS)])
        if (state >> 60) % 2:
            out.append(" ")
    return "".join(out)


for rule, vocab in (("QWEN2", 500), ("GPT2", 450), ("LLAMA3", 400)):
    pre, model = tokenizers.pre_tokenizers, tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = pre.Sequence([pre.Split(tokenizers.Regex(RULES[rule]), "isolated"),
                                        pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    model.train_from_iterator([text()], tokenizers.trainers.BpeTrainer(
        vocab_size=vocab, min_frequency=1, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False))
    merges = [" ".join(m) if isinstance(m, list) else m for m in json.loads(model.to_str())["model"]["merges"]]
    print(rule, vocab, len(merges), hashlib.sha256("".join(m + "\n" for m in merges).encode()).hexdigest())
