"""Logits of PyTorch + PEFT (f32) on an F32 GGUF (qwen2): MODEL IDS.json OURS THEIRS OUT. With the adapter of folder
OURS to OUT/ours.f32; with one that PEFT makes here and saves to folder THEIRS to OUT/theirs.f32; without any to
OUT/base.f32. Keys and values are rounded to f16, as the caches of shu and llama.cpp hold them: with a large random
adapter that alone moves logits by 1e-5 of their square."""
import json
import pathlib
import sys

import numpy
import peft
import torch

from torch_gradients import adapt, load

base, ids, ours, theirs, out = sys.argv[1:]
torch.set_num_threads(2)
tokens = torch.tensor([json.load(open(ids))])


attention = torch.nn.functional.scaled_dot_product_attention
torch.nn.functional.scaled_dot_product_attention = lambda q, k, v, *rest, **named: attention(
    q, k.half().float(), v.half().float(), *rest, **named)


def write(model, name):
    with torch.no_grad():
        model.eval()(tokens).logits[0].numpy().astype(numpy.float32).tofile(pathlib.Path(out) / f"{name}.f32")


model = load(base)
write(model, "base")
model = peft.PeftModel.from_pretrained(model, ours)
write(model, "ours")
model = adapt(model.unload())
model.save_pretrained(theirs)
write(model, "theirs")
