"""The program as a user and a script meet it: exit codes, one-line errors, JSON, no half files.

Needs SHU (the program) and TINY_MODEL (writes a random little model) in the environment. Standard library only.
"""
import contextlib
import functools
import hashlib
import http.server
import json
import os
import pathlib
import resource
import signal
import subprocess
import tempfile
import threading
import unittest

SHU, TINY = os.environ["SHU"], os.environ["TINY_MODEL"]


def shu(*args, text="", env=None, **options):
    return subprocess.run([SHU, *map(str, args)], input=text.encode() if isinstance(text, str) else text,
                          capture_output=True, timeout=120, env={**os.environ, "LANG": "C.UTF-8", **(env or {})},
                          **options)


def small_files():
    """Writing more than 4 KiB to one file fails, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        with contextlib.suppress(ConnectionError):  # a client whose disk is full goes away
            super().copyfile(source, outputfile)


@contextlib.contextmanager
def served(folder):
    """Address of a web server of this folder, on loopback."""
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Cli(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.hold = tempfile.TemporaryDirectory()
        cls.dir = pathlib.Path(cls.hold.name)
        cls.model = cls.dir / "tiny.gguf"
        subprocess.run([TINY, "qwen2", cls.model], check=True)

    @classmethod
    def tearDownClass(cls):
        cls.hold.cleanup()

    def fails(self, done, code, *words):
        self.assertEqual(done.returncode, code, done.stderr.decode())
        lines = done.stderr.decode().strip().splitlines()
        self.assertEqual(len(lines), 1, lines)
        for word in words:
            self.assertIn(word, lines[0])

    def answers(self, *args, **options):
        done = shu(*args, **options)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        return done.stdout

    # ---------------------------------------------------------------- help

    def test_every_verb_has_help_with_an_example_in_two_languages(self):
        overview = self.answers("--help").decode()
        for verb in ("run", "chat", "model", "tokenize", "logits", "perplexity", "bench", "doctor"):
            self.assertIn(f"\n  {verb} ", overview)
            self.assertRegex(self.answers(verb, "--help").decode(), rf"\nexample: .*shu {verb}\b")
            self.assertIn("例：", self.answers(verb, "--help", "--lang", "zh").decode())

    def test_no_verb_is_a_usage_error(self):
        self.assertEqual(shu().returncode, 2)

    # -------------------------------------------------------------- wrong use

    def test_wrong_words_exit_2_with_one_line(self):
        model = self.model
        self.fails(shu("frobnicate"), 2, "unknown verb", "frobnicate")
        self.fails(shu("run", model, "-p", "x", "--nope"), 2, "unknown option", "--nope")
        self.fails(shu("run", model, "-p"), 2, "needs a value")
        self.fails(shu("run", model, "-p", "x", "-n", "many"), 2, "whole number", "many")
        self.fails(shu("run", model, "-p", "x", "-n", "99999999999999999999"), 2, "whole number")
        self.fails(shu("run", model, "-p", "x", "--temp", "nan"), 2, "a number")
        self.fails(shu("run", model), 2, "-p TEXT")
        self.fails(shu("run"), 2, "expected a model")
        self.fails(shu("run", model, "other", "-p", "x"), 2, "one more")
        self.fails(shu("--lang", "fr", "doctor"), 2, "zh or en")
        self.fails(shu("run", model, "-p", "x", "--kv", "q3"), 2, "f16 or q8")
        self.fails(shu("bench", "sped"), 2, "bench speed")
        self.fails(shu("model", "frob"), 2, "pull|list|info|quantize")
        self.fails(shu("run", model, "-p", "x", env={"SHU_ISA": "mmx"}), 2, "mmx")

    def test_errors_as_json(self):
        done = shu("run", self.dir / "none.gguf", "-p", "x", "--json")
        self.assertEqual(done.returncode, 1)
        error = json.loads(done.stdout)["error"]
        self.assertEqual(set(error), {"code", "message", "where"})
        self.assertIn("none.gguf", error["message"])

    # -------------------------------------------------------------- bad input

    def test_missing_and_foreign_files_exit_1_with_one_line(self):
        text = self.dir / "notes.txt"
        text.write_text("not a model, " * 50)
        empty = self.dir / "empty.gguf"
        empty.touch()
        cut = self.dir / "cut.gguf"
        cut.write_bytes(self.model.read_bytes()[:5000])
        for verb in (["run", "-p", "x"], ["tokenize"], ["model", "info"], ["perplexity", "--file", text]):
            head = verb[:2] if verb[0] == "model" else verb[:1]
            rest = verb[len(head):]
            for path in (self.dir / "none.gguf", text, empty, cut, self.dir):
                self.fails(shu(*head, path, *rest), 1)
        self.fails(shu("run", "no-such-name", "-p", "x"), 1, "no-such-name")
        self.fails(shu("model", "pull", "no-such-name"), 1, "no-such-name")
        self.fails(shu("run", self.model, "-f", self.dir / "none.txt"), 1, "none.txt")
        self.fails(shu("run", self.model, "-p", "x", "--schema", text), 1, "notes.txt")

    def test_prompt_longer_than_the_context(self):
        self.fails(shu("run", self.model, "-p", "word " * 4000, "--ctx", 64), 1, "64")
        self.fails(shu("run", self.model, "-p", "x", "--ctx", 1 << 20), 1, "512")

    def test_prompt_that_is_not_utf8(self):
        self.fails(shu("run", self.model, "-f", "-", text=b"\xff\xfe"), 1, "UTF-8")

    def test_closed_pipe_and_full_disk_on_stdout(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([SHU, "tokenize", self.model], input=b"word " * 9999,
                                  stdout=full, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"standard output", done.stderr)
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([SHU, "tokenize", self.model], input=b"word " * 9999,
                              stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"standard output", done.stderr)

    def test_full_disk_leaves_no_half_file(self):
        out = self.dir / "out"
        out.mkdir()
        text = self.dir / "text.txt"
        text.write_text("some words to score. " * 20)
        self.fails(shu("logits", self.model, "--file", text, "--out", out / "l.f32", "-q", preexec_fn=small_files), 1)
        self.fails(shu("model", "quantize", self.model, out / "q.gguf", "Q8_0", "-q", preexec_fn=small_files), 1)
        config, cache = self.dir / "config", self.dir / "cache"
        (config / "shu").mkdir(parents=True)
        content = self.model.read_bytes()
        with served(self.dir) as address:
            (config / "shu/models.yaml").write_text(
                f"models:\n  here:\n    title: Here\n    licence: MIT\n    kind: http\n"
                f"    url: {address}/{self.model.name}\n    bytes: {len(content)}\n"
                f"    sha256: {hashlib.sha256(content).hexdigest()}\n")
            env = {"XDG_CONFIG_HOME": str(config), "XDG_CACHE_HOME": str(cache), "no_proxy": "127.0.0.1"}
            self.fails(shu("model", "pull", "here", "-q", env=env, preexec_fn=small_files), 1)
            self.assertEqual([p for p in out.iterdir()], [])
            self.assertEqual([p for p in cache.rglob("*.gguf*")], [])
            self.answers("model", "pull", "here", "-q", env=env)
        self.answers("run", "here", "-p", "x", "-n", 2, env=env)

    def test_outputs_replace_neither_inputs_nor_links_nor_devices(self):
        text, link, target = self.dir / "in.txt", self.dir / "link.f32", self.dir / "target.f32"
        text.write_text("some words to score. " * 20)
        self.fails(shu("logits", self.model, "--file", text, "--out", text, "-q"), 2, "text itself")
        self.fails(shu("logits", self.model, "--file", text, "--out", self.model, "-q"), 2, "model itself")
        self.fails(shu("model", "quantize", self.model, self.model, "Q8_0", "-q"), 2, "IN itself")
        self.fails(shu("logits", self.model, "--file", text, "--out", "/dev/stdout", "-q"), 2, "/dev/stdout")
        target.write_text("old")
        target.chmod(0o600)
        link.symlink_to(target)
        self.answers("logits", self.model, "--file", text, "--out", link, "-q")
        self.assertTrue(link.is_symlink())
        self.assertGreater(target.stat().st_size, 3)
        self.assertEqual(target.stat().st_mode & 0o777, 0o600)

    def test_a_cut_answer_under_a_schema_is_no_success(self):
        schema = self.dir / "cut.json"
        schema.write_text(json.dumps({"type": "string", "minLength": 50}))
        self.fails(shu("run", self.model, "-p", "x", "--schema", schema, "-n", 3), 1, "cut after 3 tokens", "-n")

    def test_broken_user_registry(self):
        config = self.dir / "config-broken"
        (config / "shu").mkdir(parents=True)
        (config / "shu/models.yaml").write_text("models:\n  a: [1, 2\n")
        self.fails(shu("model", "list", env={"XDG_CONFIG_HOME": str(config)}), 1, "models.yaml:")

    # ------------------------------------------------------------- right use

    def test_run_is_repeatable_and_streams_the_same_text_as_json(self):
        args = ("run", self.model, "-p", "hello", "-n", 24, "--temp", 0, "--ignore-end")
        plain = self.answers(*args)
        self.assertEqual(plain, self.answers(*args))
        result = json.loads(self.answers(*args, "--json"))
        self.assertEqual(result["answer"] + "\n", plain.decode())
        self.assertEqual(result["tokens"]["completion"], 24)
        self.assertEqual(result["finish_reason"], "length")
        seeded = ("run", self.model, "-p", "hello", "-n", 24, "--temp", 1, "--seed")
        self.assertEqual(self.answers(*seeded, 7), self.answers(*seeded, 7))
        self.assertNotEqual(self.answers(*seeded, 7), self.answers(*seeded, 8))

    def test_threads_and_speculation_change_nothing(self):
        args = ("run", self.model, "-p", "a b a b a b a b", "-n", 40, "--temp", 0, "--ignore-end")
        expected = self.answers(*args, "--speculate", 0, "--threads", 1)
        for extra in (["--threads", 2], ["--speculate", 8], ["--speculate", 3, "--threads", 3]):
            self.assertEqual(expected, self.answers(*args, *extra))

    def test_schema_makes_valid_json(self):
        schema = self.dir / "s.json"
        schema.write_text(json.dumps({"type": "object", "properties": {"name": {"type": "string", "maxLength": 8},
                                      "n": {"type": "integer", "minimum": 1, "maximum": 99}}, "required": ["name", "n"],
                                      "additionalProperties": False}))
        for seed in range(5):
            out = json.loads(self.answers("run", self.model, "-p", "x", "--schema", schema,
                                          "--seed", seed, "--temp", 1))
            self.assertTrue(1 <= out["n"] <= 99 and len(out["name"]) <= 8, out)

    def test_tokenize_round_trip_counts(self):
        ids = self.answers("tokenize", self.model, "--ids", text="hello 世界\n").decode().split()
        out = json.loads(self.answers("tokenize", self.model, "--json", text="hello 世界\n"))
        self.assertEqual([int(i) for i in ids], out["ids"])
        self.assertEqual(out["bytes"], len("hello 世界\n".encode()))
        self.assertEqual(self.answers("tokenize", self.model, "--ids"), b"")

    def test_logits_shape_and_perplexity_agree(self):
        text, out = self.dir / "t.txt", self.dir / "t.f32"
        text.write_text("the quick brown fox. " * 30)
        shape = json.loads(self.answers("logits", self.model, "--file", text, "--out", out,
                                        "--ctx", 64, "--json", "-q"))
        self.assertEqual(out.stat().st_size, shape["tokens"] * shape["vocab"] * 4)
        result = json.loads(self.answers("perplexity", self.model, "--file", text, "--ctx", 64, "--json", "-q"))
        self.assertGreater(result["perplexity"], 1)
        self.assertEqual(result["tokens"] % 31, 0)

    def adapter(self, arch="qwen2"):
        """A model and an adapter of it."""
        model, adapter = self.dir / f"{arch}.gguf", self.dir / f"{arch}.lora.gguf"
        subprocess.run([TINY, arch, model, adapter], check=True)
        return model, adapter

    def test_adapter_answers_as_the_merged_model(self):
        model, adapter = self.adapter()
        merged = self.dir / "merged.gguf"
        ask = ("-p", "the cat", "--temp", 0, "-n", 24, "--raw", "--threads", 1)
        plain = shu("run", model, *ask)
        for weight in ("", ":0.5"):
            done = shu("model", "merge", model, f"{adapter}{weight}", merged, "--type", "F32", "--json")
            self.assertEqual(json.loads(done.stdout), {"path": str(merged), "type": "F32", "adapters": 1})
            with_adapter = shu("run", model, *ask, "--adapter", f"{adapter}{weight}")
            self.assertEqual(with_adapter.returncode, 0, with_adapter.stderr)
            self.assertEqual(with_adapter.stdout, shu("run", merged, *ask).stdout)
            self.assertNotEqual(with_adapter.stdout, plain.stdout)
        both = shu("run", model, *ask, "--adapter", adapter, "--adapter", f"{adapter}:-1")  # they cancel
        self.assertEqual(both.stdout, plain.stdout)
        merged.unlink()

    def test_adapter_of_another_model_is_refused_naming_both(self):
        model, adapter = self.adapter()
        other, _ = self.adapter("qwen3")
        for args in (("run", other, "-p", "x", "--adapter", adapter), ("model", "merge", other, adapter, "out.gguf")):
            done = shu(*args, cwd=self.dir)
            line = done.stderr.decode()
            self.assertEqual((done.returncode, line.count("\n")), (1, 1), line)
            self.assertIn(str(adapter), line)
            self.assertIn(str(other), line)
        self.assertFalse((self.dir / "out.gguf").exists())

    def test_adapter_words(self):
        model, adapter = self.adapter()
        for text in (f"{adapter}:x", f"{adapter}:", ":1", f"{adapter}:1e9", f"{adapter}:nan"):
            done = shu("run", model, "-p", "x", "--adapter", text)
            self.assertEqual((done.returncode, done.stderr.count(b"\n")), (2, 1), done.stderr)
        odd = self.dir / "a:1"  # a file of that very name is meant
        odd.write_bytes(adapter.read_bytes())
        self.assertEqual(shu("run", model, "-p", "x", "-n", 2, "--adapter", odd).returncode, 0)
        for out in (model, adapter):
            before = out.read_bytes()
            self.assertEqual(shu("model", "merge", model, adapter, out).returncode, 2)
            self.assertEqual(out.read_bytes(), before)
        done = shu("logits", model, "--adapter", adapter, "--file", model, "--out", adapter)
        self.assertEqual(done.returncode, 2)

    def test_outputs_replace_nothing_inside_folders_of_inputs(self):
        model, adapter = self.adapter()
        run = self.dir / "l1"
        peft, base = run / "adapter", self.dir / "base"
        peft.mkdir(parents=True)
        base.mkdir()
        (run / "adapter.gguf").write_bytes(adapter.read_bytes())
        for file in (peft / "adapter_model.safetensors", peft / "adapter_config.json", base / "model.safetensors"):
            file.write_text(file.name)
        (base / "link.safetensors").symlink_to(model)
        files = [file for folder in (run, base) for file in folder.rglob("*") if file.is_file()]
        before = [file.read_bytes() for file in files]
        text = self.dir / "folders.txt"
        text.write_text("some words")
        for out in (peft / "adapter_model.safetensors", peft / "adapter_config.json", run / "adapter.gguf"):
            for name in (run, f"{run}:0.5", peft, f"{peft}/:2"):
                self.fails(shu("model", "merge", model, name, out), 2, "would replace", out.name)
                self.fails(shu("logits", model, "--file", text, "--adapter", name, "--out", out), 2, "would replace")
        for out in (base / "model.safetensors", base / "link.safetensors", model):
            self.fails(shu("model", "merge", base, run, out), 2, "would replace", out.name)
            self.fails(shu("model", "quantize", base, out, "F16"), 2, "would replace", out.name)
            self.fails(shu("logits", base, "--file", text, "--out", out), 2, "would replace", out.name)
        self.assertEqual([file.read_bytes() for file in files], before)
        self.answers("model", "merge", model, run, run / "merged.gguf", "-q")  # a new file replaces none

    def test_quantised_file_runs(self):
        out = self.dir / "q8.gguf"
        self.answers("model", "quantize", self.model, out, "Q8_0", "-q")
        self.answers("run", out, "-p", "x", "-n", 3)
        self.fails(shu("model", "quantize", self.model, out, "Q9", "-q"), 2, "Q9")

    def test_tokenizer_train(self):
        texts = self.dir / "texts"
        texts.mkdir()
        words = "the cat sat on the mat; 数据库 数据结构 向量 " * 20
        (texts / "a.txt").write_text(words, encoding="utf-8")
        lines = [{"messages": [{"role": "user", "content": words}]}, {"text": "naming names"}, {"id": "not counted"}]
        (texts / "b.jsonl").write_text("".join(json.dumps(line) + "\n\n" for line in lines), encoding="utf-8")
        out, again = self.dir / "words.gguf", self.dir / "again.gguf"
        done = shu("tokenizer", "train", "--files", texts / "*", "--vocab", 290, out, "--json")
        report = json.loads(done.stdout)
        self.assertEqual((report["tokens"], report["merges"], report["forgotten"]), (290, 290 - 256 - 3, 0))
        self.assertEqual(report["bytes"], 2 * len(words.encode()) + len("\n" + "naming names\n"))
        # the shell's own globbing, other threads: the same bytes
        shu("tokenizer", "train", "--threads", 3, "--vocab", 290, "--files", texts / "a.txt", texts / "b.jsonl", again)
        self.assertEqual(out.read_bytes(), again.read_bytes())
        done = shu("tokenize", out, "--count", text=words)
        self.assertLess(json.loads(done.stdout)["tokens"], len(words) / 2)
        done = shu("tokenize", out, "--ids", "--special", text="<|im_start|>x<|im_end|>")
        self.assertEqual([int(i) for i in done.stdout.split()][::2], [288, 289])

    def test_tokenizer_train_refusals(self):
        out, text = self.dir / "no.gguf", self.dir / "some.txt"
        text.write_text("aa aa")
        bad = self.dir / "bad.jsonl"
        bad.write_text('{"text": "x"}\n{"text": \n')
        train = ("tokenizer", "train")
        self.fails(shu("tokenizer", "eat"), 2, "tokenizer train")
        self.fails(shu(*train, "--files", text, out), 2, "--vocab")
        self.fails(shu(*train, "--vocab", 300, out), 2, "--files")
        self.fails(shu(*train, "--files", text, "--vocab", 300, "--pre", "bert", out), 2, "bert")
        self.fails(shu(*train, "--files", text, "--vocab", 258, out), 2, "from 259 to")
        self.fails(shu(*train, "--files", text, "--vocab", 259, "--special", "<x>", out), 1, "260 tokens at least")
        self.fails(shu(*train, "--files", self.dir / "none*.txt", "--vocab", 300, out), 1, "none*.txt")
        self.fails(shu(*train, "--files", bad, "--vocab", 300, out), 1, "line 2")
        self.assertFalse(out.exists())

    def test_tokenizer_train_replaces_nothing_but_a_vocabulary(self):
        folder = self.dir / "forgotten"
        folder.mkdir()
        texts = [folder / "a.txt", folder / "b.txt", folder / "c.gguf", folder / "d.gguf"]
        for text in texts:
            text.write_text("aa aa")
        texts[3].write_text("GGUF GGUF")
        train = ("tokenizer", "train", "--vocab", 300, "--files")
        self.fails(shu(*train, *texts[:2]), 2, "expected OUT.gguf as the last argument", "b.txt", "texts")
        self.fails(shu(*train, *texts[:3]), 2, "would replace a file that is no GGUF", "c.gguf")
        self.fails(shu(*train, texts[3], texts[3]), 2, "would replace one of the texts", "d.gguf")
        self.assertEqual([text.read_text() for text in texts], ["aa aa"] * 3 + ["GGUF GGUF"])
        self.answers(*train, *texts[:2], texts[3], "-q")  # another GGUF gives way
        self.assertGreater(texts[3].stat().st_size, 1000)

    def test_tokenizer_train_says_why_it_learned_nothing(self):
        out, text, line, empty = (self.dir / name for name in ("not.gguf", "aa.txt", "line.txt", "empty.txt"))
        text.write_text("aa aa")
        line.write_text("\n")
        empty.touch()
        (self.dir / "empty.jsonl").write_text("\n\n")
        train = ("tokenizer", "train", "--files")
        self.fails(shu(*train, text, "--vocab", 259, out), 2, "no merges were learned", "259")
        self.fails(shu(*train, text, "--vocab", 260, "--special", "<x>", out), 2, "no merges were learned", "260")
        self.fails(shu(*train, text, "--vocab", 300, "--min-count", 1000, out), 1, "no merges were learned", "1000")
        self.fails(shu(*train, line, "--vocab", 300, out), 1, "no merges were learned", "more text")
        self.fails(shu(*train, empty, "--vocab", 300, out), 1, "empty.txt: expected text")
        self.fails(shu(*train, empty, "--files", self.dir / "empty.jsonl", "--vocab", 300, out), 1,
                   "empty.txt and the other files")
        self.assertFalse(out.exists())
        self.answers(*train, text, "--vocab", 260, out, "-q")

    def test_chat_without_a_terminal_answers_each_line_and_obeys_commands(self):
        saved = self.dir / "talk.json"
        talk = f"/system be brief\nhello\n/save {saved}\n/nonsense\n/reset\n/quit\nnever read\n"
        done = shu("chat", self.model, "-n", 5, "--temp", 0, text=talk)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.assertIn(b"unknown command", done.stderr)
        self.assertEqual([m["role"] for m in json.loads(saved.read_text())], ["system", "user", "assistant"])

    def test_bench_speed_has_the_agreed_keys(self):
        out = json.loads(self.answers("bench", "speed", "-m", self.model, "--prefill", 16, "--decode", 4, "--json"))
        for key in ("prefill_tok_per_s", "decode_tok_per_s", "load_s", "rss_bytes", "read_gb_per_s", "bound_tok_per_s"):
            self.assertGreater(out[key], 0, key)

    def test_doctor_reports(self):
        done = shu("doctor", "--json", env={"XDG_CACHE_HOME": str(self.dir / "doctor")})
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertTrue(json.loads(done.stdout)["ok"])
        done = shu("doctor", env={"XDG_CACHE_HOME": "/proc/none"})
        self.assertEqual(done.returncode, 1)


if __name__ == "__main__":
    unittest.main()
