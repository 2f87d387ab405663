"""Adapters as the Python library PEFT saves them, and the logits that transformers and PEFT give with them.

    golden_peft.py TINY_MODEL     (the program of tests/cli/tiny_model.c)

Writes golden/peft-ARCH/ (adapter_config.json, adapter_model.safetensors) and golden/peft-ARCH.f32, the logits of the
tokens below on the tiny model of that architecture, [tokens, vocabulary]; keys and values are rounded to f16, as the
engine's cache holds them. Made with torch 2.15.0 (CPU, f32), transformers 5.23.0, peft 0.21.2. llama's rotary rows are
put into halves here by means of numpy alone.
"""
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy
import peft
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
TOKENS = [5, 77, 130, 201, 12, 260, 33, 288, 90, 1, 44, 171]
NAMES = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
PLAIN = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
         "output.weight": "lm_head.weight"}


def read_gguf(path):
    """Metadata and F32 tensors of a GGUF file; enough of the format for that."""
    file = open(path, "rb")
    unpack = lambda form: struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))[0]
    text = lambda: file.read(unpack("Q")).decode("utf-8", "replace")
    forms = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def value(kind):
        if kind == 8:
            return text()
        if kind != 9:
            return unpack(forms[kind])
        item, count = unpack("I"), unpack("Q")
        return [value(item) for _ in range(count)]

    file.read(8)
    tensor_count, pair_count = unpack("Q"), unpack("Q")
    meta = {text(): value(unpack("I")) for _ in range(pair_count)}
    heads = []
    for _ in range(tensor_count):
        name, dims = text(), unpack("I")
        shape = [unpack("Q") for _ in range(dims)][::-1]
        assert unpack("I") == 0, "expected F32"
        heads.append((name, shape, unpack("Q")))
    start = (file.tell() + 31) // 32 * 32
    data = pathlib.Path(path).read_bytes()
    read = lambda shape, at: numpy.frombuffer(data, "<f4", int(numpy.prod(shape)), start + at).reshape(shape)
    return meta, {name: read(shape, at) for name, shape, at in heads}


def halves(rows, heads):
    """Interleaved rotary pairs of every head as two halves."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def base_model(arch, path):
    meta, tensors = read_gguf(path)
    get = lambda tail: meta[f"{arch}.{tail}"]
    kind = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[arch]
    config = kind(hidden_size=get("embedding_length"), num_hidden_layers=get("block_count"),
                  num_attention_heads=get("attention.head_count"), head_dim=get("attention.key_length"),
                  num_key_value_heads=get("attention.head_count_kv"), intermediate_size=get("feed_forward_length"),
                  vocab_size=get("vocab_size"), max_position_embeddings=get("context_length"),
                  rms_norm_eps=get("attention.layer_norm_rms_epsilon"), rope_theta=get("rope.freq_base"),
                  tie_word_embeddings=False, attn_implementation="eager")
    state = {}
    for name, values in tensors.items():
        if arch == "llama" and ("attn_q." in name or "attn_k." in name):
            values = halves(values, get("attention.head_count" + ("_kv" if "attn_k." in name else "")))
        if name not in PLAIN:
            _, layer, part, tail = name.split(".")
            name = f"model.layers.{layer}.{NAMES[part]}.{tail}"
        else:
            name = PLAIN[name]
        state[name] = torch.from_numpy(values.copy())
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.load_state_dict(state)
    return model.eval()


def round_cache(module):
    """Lets a transformers module's attention see keys and values as f16 numbers."""
    eager = module.eager_attention_forward
    module.eager_attention_forward = lambda m, q, k, v, *rest, **named: eager(m, q, k.half().float(), v.half().float(),
                                                                             *rest, **named)


round_cache(transformers.models.llama.modeling_llama)
round_cache(transformers.models.qwen2.modeling_qwen2)

CONFIGS = {
    "llama": dict(r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear", rank_pattern={"up_proj": 2},
                  alpha_pattern={"1.self_attn.q_proj": 9}),
    "qwen2": dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj", "lm_head"]),
}


def make(arch, program):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([program, arch, f"{folder}/tiny.gguf"], check=True)
        model = base_model(arch, f"{folder}/tiny.gguf")
    torch.manual_seed(7)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **CONFIGS[arch])).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * 0.3
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0]
        with model.disable_adapter():
            plain = model(torch.tensor([TOKENS])).logits[0]
    print(f"{arch}: the adapter moves logits by {float((logits - plain).abs().max()):.3f} at most")
    out = HERE / "golden" / f"peft-{arch}"
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    logits.numpy().astype("<f4").tofile(HERE / "golden" / f"peft-{arch}.f32")


for name in CONFIGS:
    make(name, sys.argv[1])
