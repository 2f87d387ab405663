"""One LoRA training step of PyTorch (f32) on a model's dequantised weights: the truth of vs_torch_step.py.

Reads an F32 GGUF (qwen2), adds rank-16 adapters on all projections with random A and B, takes one batch of token
sequences, and writes the adapter as PEFT does, the tokens, the loss and every adapter's gradient. Versions are
printed; run by the environment of peers.torch_python().
"""
import argparse
import json
import pathlib

import numpy
import peft
import torch
import transformers
from gguf import GGUFReader

NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
         "output.weight": "lm_head.weight"}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load(path):
    """A Qwen2 of PyTorch with the file's weights."""
    reader = GGUFReader(path)

    def key(name):
        return reader.fields[f"qwen2.{name}"].contents()

    tensors = {t.name: t for t in reader.tensors}
    config = transformers.Qwen2Config(
        hidden_size=key("embedding_length"), intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"), num_attention_heads=key("attention.head_count"),
        num_key_value_heads=key("attention.head_count_kv"), rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
        rope_theta=key("rope.freq_base"), vocab_size=int(tensors["token_embd.weight"].shape[1]),
        tie_word_embeddings="output.weight" not in tensors, use_cache=False, attn_implementation="sdpa")
    config.rope_parameters = {"rope_type": "default", "rope_theta": key("rope.freq_base")}
    with torch.device("meta"):
        model = transformers.Qwen2ForCausalLM(config)
    state = {}
    for name, tensor in tensors.items():
        if name in WHOLE:
            to = WHOLE[name]
        else:
            _, layer, part, kind = name.split(".")
            to = f"model.layers.{layer}.{NAMES[part]}.{kind}"
        shape = [int(n) for n in reversed(tensor.shape)]
        state[to] = torch.from_numpy(numpy.array(tensor.data)).reshape(shape)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = transformers.Qwen2ForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    return model


def adapt(model):
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS,
                                                       task_type="CAUSAL_LM"))
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", required=True, help="int32 file, batch rows of context tokens")
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(2)
    tokens = torch.from_numpy(numpy.fromfile(args.tokens, dtype=numpy.int32)).long().view(-1, args.context)
    model = adapt(load(args.model))
    model.train()
    model.save_pretrained(args.out / "adapter")
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    gradients = args.out / "torch"
    gradients.mkdir(exist_ok=True)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.grad.numpy().astype(numpy.float32).tofile(gradients / f"{name}.f32")
    print(json.dumps({"loss": loss.item(), "torch": torch.__version__, "transformers": transformers.__version__,
                      "peft": peft.__version__}))


if __name__ == "__main__":
    main()
