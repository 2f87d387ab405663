"""Negative controls of tools/tidy: every rule must find its breach, and a clean tree must pass."""
import os
import pathlib
import subprocess
import tempfile
import unittest

TIDY = pathlib.Path(__file__).resolve().parents[2] / "tools/tidy"
ROOMS = "".join(f"| `{room}` | x | y |\n" for room in ("base", "tensor", "graph", "text", "cli"))
LONG = "int f(int x) {\n" + "    x++;\n" * 70 + "    return x;\n}\n"  # 73 lines


class Tidy(unittest.TestCase):
    def setUp(self):
        self.hold = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.hold.name)
        subprocess.run(["git", "init", "-q", self.root], check=True)
        self.put("docs/design.md", ROOMS)
        self.put("tools/keep", "")

    def tearDown(self):
        self.hold.cleanup()

    def put(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        subprocess.run(["git", "-C", self.root, "add", path], check=True)

    def tidy(self, *args):
        return subprocess.run([TIDY, *args], capture_output=True, text=True,
                              env={**os.environ, "TIDY_ROOT": str(self.root)})

    def assert_breach(self, path, text, message, count=1):
        self.put(path, text)
        done = self.tidy()
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertEqual(len(done.stdout.splitlines()), count, done.stdout)
        self.assertIn(path, done.stdout)
        self.assertIn(message, done.stdout)

    def test_clean_tree_passes(self):
        self.put("src/text/a.c", '#include "base/base.h"\n#include "text/text.h"\n'
                 '/* strcpy(TO) */\nconst char *s = "exit(1)";\n')
        self.put("src/cli/b.c", '#include "text/text.h"\nint f(void) { return printf("x"); }\n')
        done = self.tidy()
        self.assertEqual((done.returncode, done.stdout.count("\n")), (0, 1), done.stdout)

    def test_layers(self):
        self.assert_breach("src/tensor/a.c", '#include "graph/graph.h"\n', "tensor may not include room graph")

    def test_unknown_room(self):
        self.assert_breach("src/cellar/a.c", "\n", "not in the table")

    def test_banned_functions(self):
        for name in ("strcpy", "strcat", "sprintf", "vsprintf", "gets", "atoi", "strtok", "alloca", "system", "tmpnam"):
            self.assert_breach("tests/x/a.c", f"void f(void) {{ {name}(x); }}\n", f"{name} is banned")

    def test_heap_outside_memory(self):
        self.assert_breach("src/text/a.c", "void *f(void) { return malloc(3); }\n", "memory comes from mem_*")

    def test_library_that_speaks(self):
        self.assert_breach("src/text/a.c", "void f(void) { exit(1); }\n", "does not print or exit")
        self.assert_breach("src/text/a.c", 'void f(void) { fprintf(stderr, "x"); }\n', "does not print or exit")

    def test_long_line(self):
        self.assert_breach("src/text/a.c", "/* " + "x" * 118 + "*/\n", "characters")

    def test_long_file(self):
        self.assert_breach("src/text/a.c", "int a;\n" * 1001, "split it")

    def test_unfinished(self):
        self.assert_breach("README.md", "TO" + "DO: more\n", "issue")

    def test_machine_path(self):
        self.assert_breach("tools/a", "cd /ro" + "ot/x\n", "one machine")
        self.assert_breach("tools/a", "cd /home/" + "li/x\n", "one machine")

    def test_large_file(self):
        self.assert_breach("tests/x/data.bin", "x" * (1 << 20) + "x", "bytes; at most")

    def test_function_ratchet(self):
        self.assert_breach("src/text/a.c", LONG, "f: 73 lines; at most 70")
        self.assertEqual(self.tidy("--ratchet").returncode, 0)
        self.assertEqual(self.tidy().returncode, 0)  # as long as it was when it was recorded
        self.assert_breach("src/text/a.c", LONG.replace("return", "x--;\n    return"), "f: 74 lines; at most 73")
        self.put("src/text/a.c", LONG.replace("    x++;\n", "", 20))
        self.assertEqual(self.tidy("--ratchet").returncode, 0)
        self.assert_breach("src/text/a.c", LONG, "at most 70")  # what has become short stays short


if __name__ == "__main__":
    unittest.main()
