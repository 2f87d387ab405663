"""shu train as a user meets it: bad data named by file and line, wrong use, what a run leaves.

Needs SHU and TINY_MODEL in the environment. Standard library only.
"""
import json
import os
import pathlib
import resource
import signal
import struct
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree

SHU, TINY = os.environ["SHU"], os.environ["TINY_MODEL"]


def shu(*args, **options):
    return subprocess.run([SHU, *map(str, args)], capture_output=True, timeout=120,
                          env={**os.environ, "LANG": "C.UTF-8"}, **options)


def chat(question, answer):
    return json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})


class Train(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.hold = tempfile.TemporaryDirectory()
        cls.dir = pathlib.Path(cls.hold.name)
        cls.models = {}
        for arch in ("qwen2", "llama"):
            cls.models[arch] = cls.dir / f"{arch}.gguf"
            subprocess.run([TINY, arch, cls.models[arch]], check=True)
        cls.count = 0

    @classmethod
    def tearDownClass(cls):
        cls.hold.cleanup()

    def fresh(self, suffix=""):
        Train.count += 1
        return self.dir / f"{self.count}{suffix}"

    def data(self, *lines, suffix=".jsonl"):
        path = self.fresh(suffix)
        path.write_text("\n".join(lines) + "\n" if lines else "")
        return path

    def train(self, data, *options, out=None, method="lora", steps=2, **more):
        out = out or self.fresh()
        return shu("train", "--base", self.models["qwen2"], "--data", data, "--method", method, "--out", out, "--steps",
                   steps, "--context", 64, "--held-out", 0, "-q", *options, **more), out

    def fails(self, done, code, *words):
        self.assertEqual(done.returncode, code, done.stderr.decode())
        lines = done.stderr.decode().strip().splitlines()
        self.assertEqual(len(lines), 1, lines)
        for word in words:
            self.assertIn(word, lines[0])

    def rejects(self, out):
        return [json.loads(line) for line in (out / "data.shard.rejects.jsonl").read_text().splitlines()]

    # -------------------------------------------------------------- bad data

    def test_broken_json_is_named_by_line_and_the_rest_is_used(self):
        data = self.data(chat("a", "b"), '{"messages": [', chat("c", "d"))
        done = shu("train", "--base", self.models["qwen2"], "--data", data, "--method", "lora", "--out",
                   out := self.fresh(), "--steps", 1, "--context", 64, "--held-out", 0)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.assertIn("data: 3 lines, 2 sequences", done.stderr.decode())
        self.assertIn("1 lines rejected", done.stderr.decode())
        self.assertEqual([reject["line"] for reject in self.rejects(out)], [2])
        self.assertIn("not valid JSON", self.rejects(out)[0]["reason"])

    def test_only_broken_json(self):
        data = self.data('{"messages": [', "{")
        self.fails(self.train(data)[0], 1, f"{data}:1: not valid JSON", "none of the 2 lines")

    def test_empty_file(self):
        data = self.data()
        self.fails(self.train(data)[0], 1, str(data), "empty file")
        self.fails(self.train(self.dir / "none.jsonl")[0], 1, "none.jsonl", "no such file")

    def test_no_assistant_turn(self):
        data = self.data('{"messages": [{"role": "user", "content": "a"}]}')
        self.fails(self.train(data)[0], 1, f"{data}:1: no assistant turn")

    def test_sequence_longer_than_the_context(self):
        data = self.data(chat("a", "b"), chat("a", "b" * 200))
        done, out = self.train(data)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.assertIn("the context is 64", self.rejects(out)[0]["reason"])
        self.assertEqual(self.rejects(out)[0]["line"], 2)
        done, out = self.train(data, "--cut")
        self.assertFalse((out / "data.shard.rejects.jsonl").exists())
        self.fails(self.train(data, "--context", 4096)[0], 1, "512 positions")

    def test_tokens_beyond_the_vocabulary(self):
        done, out = self.train(self.data(chat("a", "b"), chat("c", "d")))
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        shard = self.fresh(".shard")
        content = bytearray((out / "data.shard").read_bytes())
        content[16:20] = struct.pack("<I", 40000)
        content[-8:] = struct.pack("<Q", xxh64(bytes(content[:-8])))
        shard.write_bytes(content)
        self.fails(self.train(shard)[0], 1, str(shard), "sequence 1 (line 1 of its data): token 40000 is beyond")

    def test_a_damaged_shard(self):
        done, out = self.train(self.data(chat("a", "b")))
        content = (out / "data.shard").read_bytes()
        shard = self.fresh(".shard")
        shard.write_bytes(content[:-20])
        self.fails(self.train(shard)[0], 1, str(shard), "not a whole shard")
        shard.write_bytes(content[:40] + b"\1" + content[41:])
        self.fails(self.train(shard)[0], 1, str(shard), "checksum")

    def test_pairs_where_texts_belong_and_the_other_way_round(self):
        pairs = self.data('{"prompt": "a", "chosen": "b", "rejected": "c"}')
        self.fails(self.train(pairs)[0], 1, ":1:", "--method dpo")
        self.fails(self.train(self.data(chat("a", "b")), method="dpo")[0], 1, ":1:", "chosen")

    def test_an_adapter_of_another_base(self):
        done, out = self.train(self.data(chat("a", "b")))
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        done = shu("run", self.models["llama"], "--adapter", out / "adapter.gguf", "-p", "x", "-n", 1)
        self.fails(done, 1, "adapter.gguf")
        shu("run", self.models["qwen2"], "--adapter", out / "adapter.gguf", "-p", "x", "-n", 1).check_returncode()

    def test_a_full_disk_at_a_checkpoint(self):
        data, out = self.data(*(chat(f"{i}", f"{i}") for i in range(20))), self.fresh()
        done, _ = self.train(data, "--rank", 1, "--checkpoint-every", 1, out=out, steps=2)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        before = {path.name: path.read_bytes() for path in out.glob("checkpoint-*")}

        def small_files():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            limit = min(map(len, before.values())) - 100
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        out2 = self.fresh()
        done, _ = self.train(data, "--rank", 1, "--checkpoint-every", 1, out=out2, steps=4, preexec_fn=small_files)
        self.fails(done, 1, "checkpoint (earlier ones are unharmed)")
        self.assertEqual(list(out2.glob("checkpoint-*")), [])
        done, _ = self.train(data, "--rank", 1, "--checkpoint-every", 1, "--resume", out=out2, steps=4)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.assertEqual(len(list(out2.glob("checkpoint-*"))), 2)

    # -------------------------------------------------------------- wrong use

    def test_wrong_words_exit_2(self):
        data, base = self.data(chat("a", "b")), self.models["qwen2"]
        self.fails(shu("train"), 2, "expected: shu train --base MODEL")
        self.fails(shu("train", "--data", data, "--out", self.fresh()), 2, "needs --base")
        self.fails(self.train(data, "--rank", "many")[0], 2, "--rank: expected a whole number")
        self.fails(self.train(data, "--lr", "-1")[0], 2, "--lr: expected a number")
        self.fails(self.train(data, method="sft")[0], 2, "lora, full, scratch or dpo")
        self.fails(shu("train", "--base", base, "--data", data, "--method", "scratch", "--out", self.fresh()), 2,
                   "scratch has no base")
        recipe = self.fresh(".yaml")
        recipe.write_text("rank: 4\nrnak: 5\n")
        self.fails(self.train(data, "--config", recipe)[0], 1, f"{recipe}:2:", "rnak: no such key")
        recipe.write_text("method: full\n")
        self.fails(self.train(data, "--config", recipe)[0], 2, "says method: full")

    def test_a_finished_run_is_not_written_over(self):
        data = self.data(chat("a", "b"))
        done, out = self.train(data)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.fails(self.train(data, out=out)[0], 2, "has reached step 2", "--resume")
        self.assertEqual(self.train(data, "--resume", out=out)[0].returncode, 0)
        self.fails(self.train(data, "--resume", "--rank", 3, out=out)[0], 1, "rank was 16")

    # ------------------------------------------------------------- right use

    def test_what_a_run_leaves(self):
        data = self.data(*(chat(f"{i}", f"{i}") for i in range(60)))
        done, out = self.train(data, "--held-out", 0.2, "--json", steps=5)
        result = json.loads(done.stdout)
        self.assertEqual(result["product"], str(out / "adapter.gguf"))
        for key in ("loss", "held_out_loss", "train_tok_per_s", "peak_rss_bytes", "parameters"):
            self.assertGreater(result[key], 0, key)
        self.assertEqual(result["data"]["lines"], 60)
        card = (out / "README.md").read_text()
        for word in ("base_model:", "## Data", "## Recipe", "## Results", "shu run"):
            self.assertIn(word, card)
        xml.etree.ElementTree.parse(out / "loss.svg")
        self.assertTrue((out / "adapter/adapter_config.json").exists())
        self.assertEqual(len((out / "metrics.jsonl").read_text().splitlines()), 6)
        merged = self.fresh(".gguf")
        shu("model", "merge", self.models["qwen2"], out / "adapter.gguf", merged).check_returncode()
        shu("run", merged, "-p", "x", "-n", 1).check_returncode()

    def test_names_cannot_break_the_card(self):
        base, out = self.dir / 'a"\nlicense: "x.gguf', self.fresh()
        base.write_bytes(self.models["qwen2"].read_bytes())
        shu("train", "--base", base, "--data", self.data(chat("a", "b")), "--out", out, "--steps", 1, "--context", 64,
            "--held-out", 0, "-q").check_returncode()
        head = (out / "README.md").read_text().split("---")[1].strip().splitlines()
        self.assertEqual([line.split(":")[0] for line in head], ["base_model", "tags"])

    def test_a_plan_trains_nothing(self):
        data = self.data(*(chat(f"{i}", f"{i}") for i in range(60)))
        done, out = self.train(data, "--plan", "--probe", 0.2, "--json", steps=50)
        plan = json.loads(done.stdout)
        for key in ("tokens", "seconds", "train_tok_per_s", "peak_rss_bytes", "kwh_estimated"):
            self.assertGreater(plan[key], 0, key)
        self.assertEqual(plan["steps"], 50)
        self.assertFalse((out / "metrics.jsonl").exists())
        self.assertEqual(self.train(data, out=out)[0].returncode, 0)

    def test_from_scratch_to_answers(self):
        text, vocabulary, out = self.fresh(".txt"), self.fresh(".gguf"), self.fresh()
        text.write_text("".join(f"the herb of line {i} is in the book.\n\n" for i in range(300)))
        shu("tokenizer", "train", "--files", text, "--vocab", 300, vocabulary, "-q").check_returncode()
        recipe = self.fresh(".yaml")
        recipe.write_text("network: {layers: 2, width: 64, heads: 4, kv_heads: 2, head_dim: 16, ffn: 96,\n"
                          "          context: 64}\n")
        done = shu("train", "--tokenizer", vocabulary, "--data", text, "--method", "scratch", "--config", recipe,
                   "--out", out, "--steps", 40, "--batch", 8, "--context", 64, "--lr", 5e-3, "-q", "--json")
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.assertLess(json.loads(done.stdout)["loss"], 2.5)
        done = shu("run", out / "model.gguf", "--raw", "-p", "the herb", "-n", 8, "--temp", 0)
        self.assertEqual(done.returncode, 0, done.stderr.decode())


def xxh64(data):
    """XXH64 with seed 0, for the shards that this test forges."""
    mask, p1, p2, p3, p4, p5 = (1 << 64) - 1, 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, \
        0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5

    def turn(x, by):
        return (x << by | x >> (64 - by)) & mask

    def mix(lane, value):
        return turn((lane + value * p2) & mask, 31) * p1 & mask

    lanes, at = [(p1 + p2) & mask, p2, 0, -p1 & mask], 0
    while at + 32 <= len(data):
        for i, value in enumerate(struct.unpack_from("<4Q", data, at)):
            lanes[i] = mix(lanes[i], value)
        at += 32
    if at:
        hashed = sum(turn(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18))) & mask
        for lane in lanes:
            hashed = ((hashed ^ mix(0, lane)) * p1 + p4) & mask
    else:
        hashed = p5
    hashed = (hashed + len(data)) & mask
    while at + 8 <= len(data):
        hashed = (turn(hashed ^ mix(0, struct.unpack_from("<Q", data, at)[0]), 27) * p1 + p4) & mask
        at += 8
    if at + 4 <= len(data):
        hashed = (turn(hashed ^ struct.unpack_from("<I", data, at)[0] * p1 & mask, 23) * p2 + p3) & mask
        at += 4
    for byte in data[at:]:
        hashed = turn(hashed ^ byte * p5 & mask, 11) * p1 & mask
    hashed = (hashed ^ hashed >> 33) * p2 & mask
    hashed = (hashed ^ hashed >> 29) * p3 & mask
    return hashed ^ hashed >> 32


if __name__ == "__main__":
    unittest.main()
