"""The same F16 file quantised by shu and by llama-quantize: every tensor must get the same type,
llama.cpp must run both files, and its perplexity on ours should not be worse."""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import peers


def types(path):
    info = json.loads(peers.run([peers.SHU, "model", "info", path, "--json"]))
    return {tensor["name"]: tensor["type"] for tensor in info["tensors"]}


def timed(argv):
    start = time.monotonic()
    peers.run(argv)
    return time.monotonic() - start


def perplexity(path, text, chunks):
    for _ in range(3):  # its last line is now and then lost when it exits
        done = subprocess.run([str(peers.llama("llama-perplexity")), "-m", str(path), "-f", str(text), "-c", "512",
                               "--chunks", str(chunks), "-t", "2"], capture_output=True, text=True)
        found = re.search(r"PPL = ([0-9.]+)", done.stdout + done.stderr)
        if found:
            return float(found.group(1))
    sys.exit(f"llama-perplexity gave no result for {path}")


def compare(size, target, folder, chunks):
    source, ours, theirs = (folder / f"{name}.gguf" for name in ("f16", "ours", "theirs"))
    if not source.exists():
        peers.run([peers.SHU, "model", "quantize", peers.model(size), source, "F16"])
    our_s = timed([peers.SHU, "model", "quantize", source, ours, target])
    their_s = timed([peers.llama("llama-quantize"), source, theirs, target, "2"])
    left, right = types(ours), types(theirs)
    differ = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
    text = folder / "text.txt"
    text.write_text(peers.english_text(60000) + peers.chinese_text(20000), encoding="utf-8")
    row = {"model": size, "target": target, "tensors": len(right), "differ": differ,
           "bytes": [ours.stat().st_size, theirs.stat().st_size], "seconds": [our_s, their_s],
           "perplexity": [perplexity(path, text, chunks) for path in (ours, theirs)]}
    ours.unlink()
    theirs.unlink()
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="0.5B,270M")
    parser.add_argument("--targets", default="Q4_K_M,Q8_0")
    parser.add_argument("--chunks", type=int, default=8)
    options = parser.parse_args()
    rows = []
    for size in options.models.split(","):
        with tempfile.TemporaryDirectory(dir=peers.PEERS) as folder:
            rows += [compare(size, target, pathlib.Path(folder), options.chunks)
                     for target in options.targets.split(",")]
    lines = ["| model | target | tensors | other type | bytes (shu, llama.cpp) | seconds | perplexity in llama.cpp |",
             "|---|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['model']} | {row['target']} | {row['tensors']} | {len(row['differ'])} "
                     f"| {row['bytes'][0]}, {row['bytes'][1]} | {row['seconds'][0]:.1f}, {row['seconds'][1]:.1f} "
                     f"| {row['perplexity'][0]:.4f}, {row['perplexity'][1]:.4f} |")
    peers.publish("vs-quantize", lines, {"rows": rows})
    if any(row["differ"] for row in rows):
        sys.exit("types differ: " + ", ".join(name for row in rows for name in row["differ"][:5]))


if __name__ == "__main__":
    main()
