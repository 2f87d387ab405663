"""Hugging Face's BPE trainer under Qwen's cutting rule: VOCAB OUT.json TEXT… to {"seconds", "merges"}; with --encode
TOKENIZER.json TEXT to {"tokens"}. Run by vs_tokenizer_train.py in the environment that has the library."""
import json
import sys
import time

import tokenizers

from vs_tokenizers import QWEN2


def train(vocab, out, files):
    pre, model = tokenizers.pre_tokenizers, tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = pre.Sequence([pre.Split(tokenizers.Regex(QWEN2), "isolated"),
                                        pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab, min_frequency=2, show_progress=False,
                                             initial_alphabet=pre.ByteLevel.alphabet())
    start = time.perf_counter()
    model.train_from_iterator([open(f, encoding="utf-8").read() for f in files], trainer)
    seconds = time.perf_counter() - start
    model.save(out)
    merges = json.load(open(out))["model"]["merges"]
    return {"seconds": seconds, "merges": [" ".join(m) if isinstance(m, list) else m for m in merges]}


if sys.argv[1] == "--encode":
    tokenizer = tokenizers.Tokenizer.from_file(sys.argv[2])
    print(json.dumps({"tokens": len(tokenizer.encode(open(sys.argv[3], encoding="utf-8").read()).ids)}))
else:
    print(json.dumps(train(int(sys.argv[1]), sys.argv[2], sys.argv[3:])))
