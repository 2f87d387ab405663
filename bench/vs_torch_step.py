"""One training step of the 0.5B model: loss and the gradient of every adapter against PyTorch (f32).

Both sides read the same dequantised weights, the same random adapters (B is not zero) and the same tokens of Chinese
text. The error of a tensor is |shu - torch| / |torch| in Euclidean norm; the bar is 1e-3 for every one.
A negative control compares with the gradient of the next layer and must fail.
"""
import argparse
import json
import pathlib
import struct
import subprocess
import tempfile

import peers

BAR = 1e-3
PARTS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down"}
COMPARE = """
import json, pathlib, sys, numpy
out = {}
for name, ours, theirs in json.load(sys.stdin):
    a, b = (numpy.fromfile(p, dtype=numpy.float32).astype(numpy.float64) for p in (ours, theirs))
    out[name] = float(numpy.linalg.norm(a - b) / numpy.linalg.norm(b)) if a.shape == b.shape else float("inf")
print(json.dumps(out))
"""


def tool():
    """The program that runs our step, built beside the release build."""
    build = peers.SHU.parent
    peers.run(["cmake", "--build", build, "--target", "bench_gradients"])
    return build / "bench_gradients"


def tokens_of(model, count):
    text = peers.chinese_text(count * 2).encode()
    out = peers.run([peers.SHU, "tokenize", model, "--ids"], input=text).decode()
    ids = [int(i) for i in out.split()][:count]
    return struct.pack(f"<{len(ids)}i", *ids)


def our_name(theirs):
    """base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight -> blk.0.ffn_up.weight.lora_a"""
    layer, part = theirs.split(".layers.")[1].split(".", 1)
    part, kind = part.split(".lora_")
    return f"blk.{layer}.{PARTS[part]}.weight.lora_{kind[0].lower()}"


def compare(pairs):
    out = subprocess.run([peers.torch_python(), "-c", COMPARE], input=json.dumps(pairs).encode(), check=True,
                         capture_output=True)
    return json.loads(out.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--context", type=int, default=64)
    args = parser.parse_args()
    model = peers.truth("0.5B")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "tokens").write_bytes(tokens_of(model, args.batch * args.context))
        (folder / "shu").mkdir()
        theirs = json.loads(peers.run([peers.torch_python(), peers.ROOT / "bench/torch_gradients.py", "--model", model,
                                       "--tokens", folder / "tokens", "--context", args.context, "--out", folder]
                                      ).splitlines()[-1])
        ours = json.loads(peers.run([tool(), model, folder / "adapter", folder / "tokens", args.context,
                                     folder / "shu"]))
        files = {our_name(p.stem): p for p in (folder / "torch").iterdir()}
        errors = compare([[n, str(folder / "shu" / f"{n}.f32"), str(p)] for n, p in files.items()])
        wrong = compare([[n, str(folder / "shu" / f"{n.replace('blk.3.', 'blk.4.')}.f32"), str(p)]
                         for n, p in files.items() if n.startswith("blk.3.")])
    loss_error = abs(ours["loss"] - theirs["loss"]) / theirs["loss"]
    worst = max(errors, key=errors.get)
    ordered = sorted(errors.values())
    lines = ["| what | measured | bar |", "|---|---|---|",
             f"| loss | {ours['loss']:.6f} against {theirs['loss']:.6f}, relative error {loss_error:.2e} | <= {BAR} |",
             f"| gradients, {len(errors)} tensors | min/median/max {ordered[0]:.2e}/{ordered[len(ordered) // 2]:.2e}/"
             f"{ordered[-1]:.2e} (worst: {worst}) | <= {BAR} each |",
             f"| negative control: another layer's gradient | least error {min(wrong.values()):.2e} | > {BAR} |"]
    peers.publish("vs-torch-step", lines, {"errors": errors, "control": wrong, "shu": ours, "torch": theirs})
    if not (loss_error <= BAR and ordered[-1] <= BAR and min(wrong.values()) > BAR):
        raise SystemExit("vs-torch-step: beyond the bar")


if __name__ == "__main__":
    main()
