"""kill -9 at random moments: a resumed run writes the metrics and weights of an undisturbed one.

Needs SHU and TINY_MODEL in the environment. SHU_KILLS sets how many kills each run survives (5).
"""
import json
import os
import pathlib
import random
import signal
import subprocess
import tempfile
import time
import unittest

SHU, TINY = os.environ["SHU"], os.environ["TINY_MODEL"]
KILLS = int(os.environ.get("SHU_KILLS", "5"))
CLOCK = {"tokens_per_second", "seconds", "peak_bytes"}


def metrics(folder):
    """Lines of metrics.jsonl without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


class Resume(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.hold = tempfile.TemporaryDirectory()
        cls.dir = pathlib.Path(cls.hold.name)
        cls.model = cls.dir / "tiny.gguf"
        subprocess.run([TINY, "qwen2", cls.model], check=True)
        cls.random = random.Random(int(os.environ.get("SHU_SEED", time.time_ns())))

    @classmethod
    def tearDownClass(cls):
        cls.hold.cleanup()

    def write_data(self, method):
        path = self.dir / f"{method}.jsonl"
        with path.open("w") as file:
            for i in range(80):
                pair = {"chosen": f"{i % 7} yes", "rejected": f"{i % 5} no"}
                file.write(json.dumps({"prompt": f"Say {i}"} | (pair if method == "dpo" else
                                                                {"completion": f"well, {i * i} and {i % 5}"})) + "\n")
        return path

    def command(self, method, out, data):
        source = ["--tokenizer", self.model] if method == "scratch" else ["--base", self.model]
        config = self.dir / f"{method}.yaml"
        config.write_text(f"method: {method}\nspike: 0\n" + (
            "network: {layers: 2, width: 32, heads: 2, kv_heads: 2, head_dim: 16, ffn: 48, context: 128}\n"
            if method == "scratch" else ""))
        return [SHU, "train", *source, "--data", data, "--out", out, "--config", config, "--steps", "60",
                "--batch", "4", "--micro-batch", "2", "--context", "128", "--held-out", "0.1", "--eval-every", "7",
                "--checkpoint-every", "3", "--lr", "1e-3", "-q"] + (
                    ["--dropout", "0.1", "--rank", "4"] if method == "lora" else [])

    def killed(self, command):
        """Starts the run and kills it within the time it needs; False if it was done before."""
        run = subprocess.Popen([*map(str, command), "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(self.random.uniform(0.02, self.seconds))
        alive = run.poll() is None
        run.send_signal(signal.SIGKILL)
        error = run.communicate()[1].decode()
        self.assertIn(run.returncode, (0, -signal.SIGKILL), error)
        return alive

    def check(self, method):
        data = self.write_data(method)
        whole, broken = self.dir / f"{method}-whole", self.dir / f"{method}-broken"
        start = time.monotonic()
        subprocess.run(list(map(str, self.command(method, whole, data))), check=True, capture_output=True)
        self.seconds = (time.monotonic() - start) * 0.5
        kills = sum(self.killed(self.command(method, broken, data)) for _ in range(KILLS))
        self.assertGreater(kills, 0)
        done = subprocess.run([*map(str, self.command(method, broken, data)), "--resume"], capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.assertEqual(metrics(whole), metrics(broken))
        self.assertEqual([line["step"] for line in metrics(broken)], list(range(61)))
        if method in ("lora", "dpo"):
            for name in ("adapter.gguf", "adapter/adapter_model.safetensors"):
                self.assertEqual((whole / name).read_bytes(), (broken / name).read_bytes(), name)
        checkpoints = sorted(path.name for path in broken.glob("checkpoint-*"))
        self.assertEqual(checkpoints, ["checkpoint-00000057.shu", "checkpoint-00000060.shu"])

    def test_lora(self):
        self.check("lora")

    def test_full(self):
        self.check("full")

    def test_scratch(self):
        self.check("scratch")

    def test_dpo(self):
        self.check("dpo")

    def test_an_interrupt_saves_and_says_how_to_go_on(self):
        data = self.write_data("lora")
        out = self.dir / "interrupted"
        command = [*map(str, self.command("lora", out, data)), "--checkpoint-every", "0", "--steps", "4000"]
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 4:
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        error = run.communicate(timeout=60)[1].decode()
        self.assertEqual(run.returncode, 1, error)
        self.assertIn("--resume", error)
        saved = max(int(path.stem.split("-")[1]) for path in out.glob("checkpoint-*.shu"))
        self.assertEqual(metrics(out)[-1]["step"], saved)
        refused = subprocess.run(command, capture_output=True)
        self.assertEqual(refused.returncode, 2)
        self.assertIn(f"has reached step {saved}", refused.stderr.decode())


if __name__ == "__main__":
    unittest.main()
