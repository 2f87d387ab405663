#!/usr/bin/env python3
"""Renders public chat templates with Shu and with jinja2 set up as Hugging Face does; both must agree byte for byte.

    tests/text/template_parity.py [--program build/…/template_render] [--templates FOLDER] [--gguf FILE …] [-v]

Without --templates the llama-cpp-python source distribution (pinned version and SHA-256) is fetched by pip into the
user's cache and its models/templates/*.jinja are read from there; nothing of it is copied into this tree. Where jinja2
refuses a template or raises, Shu must fail too. Exit code 0: all agree.
"""
import argparse
import datetime
import glob
import hashlib
import json
import os
import subprocess
import sys
import tarfile

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
NOW = 1764547200  # 2025-12-01


class Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %}: transparent, as in Hugging Face transformers."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(form)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


def tools():
    return [
        {"type": "function", "function": {
            "name": "get_weather", "description": "Weather of a city, \"now\" <b>&</b> later: it's 天气.",
            "parameters": {"type": "object", "required": ["city"], "properties": {
                "city": {"type": "string", "description": "City name"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": ["integer", "null"], "minimum": 1},
                "where": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
                          "required": ["lat", "lon"]},
                "tags": {"type": "array", "items": {"type": "string"}}}}}},
        {"type": "function", "function": {
            "name": "search", "description": "Finds passages.\nTwo lines.",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}},
                           "required": ["query"]}, "return": {"type": "string", "description": "text"}}},
    ]


def call(name, arguments, ident):
    return {"role": "assistant", "content": "", "tool_calls": [
        {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}]}


def scenarios():
    user = {"role": "user", "content": "Hello, who are you?"}
    system = {"role": "system", "content": "You are a careful assistant.\n  Indented line.\n"}
    chinese = [{"role": "system", "content": "你是中医药助手。"}, {"role": "user", "content": "  麻黄汤由哪些药物组成?　"},
               {"role": "assistant", "content": "麻黄、桂枝、杏仁、甘草。"}, {"role": "user", "content": "用法呢?🙂"}]
    turns = [system, user, {"role": "assistant", "content": "I am Shu."}, {"role": "user", "content": "Good.\n\nBye."}]
    thinking = [user, {"role": "assistant", "content": "<think>\nlet me see\n</think>\n\nIt is 4.",
                        "reasoning_content": "let me see"},
                {"role": "user", "content": "And 3+3?"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "First part. "},
                                          {"type": "text", "text": "Second part."}]}]
    weather = {"city": "成都", "days": 2, "where": {"lat": 30.5, "lon": 104.0},
               "tags": ["a", "b"], "flag": True, "none": None}
    loop = [user, call("get_weather", weather, "abc123def"),
            {"role": "tool", "name": "get_weather", "tool_call_id": "abc123def", "content": "{\"temp\": 21.5}"},
            {"role": "assistant", "content": "21.5 degrees."}, {"role": "user", "content": "Thanks"}]
    text_arguments = [user, call("search", "{\"query\": \"ma huang\"}", "xyz789xyz"),
                      {"role": "tool", "name": "search", "tool_call_id": "xyz789xyz", "content": "found nothing"}]
    two = [user, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "aaaaaaaaa", "type": "function", "function": {"name": "search", "arguments": {"query": "x"}}},
        {"id": "bbbbbbbbb", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}]},
        {"role": "tool", "tool_call_id": "aaaaaaaaa", "name": "search", "content": "one"},
        {"role": "tool", "tool_call_id": "bbbbbbbbb", "name": "get_weather", "content": "two"}]
    yield "user", dict(messages=[user])
    yield "user, no prompt", dict(messages=[user], add_generation_prompt=False)
    yield "system", dict(messages=[system, user])
    yield "turns", dict(messages=turns)
    yield "turns, ends with assistant", dict(messages=turns[:3], add_generation_prompt=False)
    yield "chinese", dict(messages=chinese)
    yield "empty content", dict(messages=[{"role": "system", "content": ""}, {"role": "user", "content": ""}])
    yield "thinking", dict(messages=thinking)
    yield "thinking off", dict(messages=thinking, enable_thinking=False, thinking=False)
    yield "thinking on", dict(messages=thinking, enable_thinking=True, thinking=True, reasoning_effort="high")
    yield "parts", dict(messages=parts)
    yield "tools", dict(messages=[system, user], tools=tools())
    yield "tools, no system", dict(messages=[user], tools=tools())
    yield "tool loop", dict(messages=loop, tools=tools())
    yield "tool loop, no list", dict(messages=loop)
    yield "tool arguments as text", dict(messages=text_arguments, tools=tools())
    yield "two calls", dict(messages=two, tools=tools())
    yield "documents", dict(messages=[user], documents=[{"title": "T", "text": "body"}, {"title": "U", "text": "more"}])
    yield "bad role", dict(messages=[{"role": "wizard", "content": "x"}])
    yield "no messages", dict(messages=[])
    yield "two users", dict(messages=[user, user])


def fetch():
    """The templates folder of the pinned source distribution, fetched once."""
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "shu", "tests")
    archive = os.path.join(cache, f"llama_cpp_python-{VERSION}.tar.gz")
    folder = os.path.join(cache, f"llama_cpp_python-{VERSION}-templates")
    if os.path.isdir(folder):
        return folder
    os.makedirs(cache, exist_ok=True)
    if not os.path.exists(archive):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:",
                        "-d", cache, f"llama-cpp-python=={VERSION}"], check=False)
    with open(archive, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    if digest != SHA256:
        sys.exit(f"{archive}: expected SHA-256 {SHA256}, found {digest}: delete the file and run again")
    os.makedirs(folder + ".part", exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            if "/models/templates/" in member.name and member.name.endswith(".jinja") and member.isfile():
                with open(os.path.join(folder + ".part", os.path.basename(member.name)), "wb") as out:
                    out.write(tar.extractfile(member).read())
    os.rename(folder + ".part", folder)
    return folder


def gguf_template(path):
    """tokenizer.chat_template of a GGUF file, found by its key in the first 64 MiB."""
    with open(path, "rb") as file:
        head = file.read(64 << 20)
    key = b"tokenizer.chat_template"
    at = head.find(len(key).to_bytes(8, "little") + key)
    if at < 0:
        return None
    at += 8 + len(key) + 4
    size = int.from_bytes(head[at:at + 8], "little")
    return head[at + 8:at + 8 + size].decode()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/release/template_render")
    parser.add_argument("--templates")
    parser.add_argument("--gguf", nargs="*", default=[])
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    folder = options.templates or fetch()
    sources = {}
    for path in sorted(glob.glob(os.path.join(folder, "*.jinja"))):
        with open(path, newline="", encoding="utf-8") as file:
            sources[os.path.basename(path)] = file.read()
    for path in options.gguf:
        source = gguf_template(path)
        if source:
            sources[os.path.basename(path)] = source
    if not sources:
        sys.exit(f"{folder}: no *.jinja files found")
    program = subprocess.Popen([options.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, encoding="utf-8")
    env, total, agree, rendered, complete = environment(), 0, 0, 0, 0
    for name, source in sources.items():
        before = total - agree
        for title, variables in scenarios():
            variables = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>", **variables}
            try:
                expected = env.from_string(source).render(**variables)
            except Exception as error:  # whatever jinja2 or Python raises, Shu must refuse too
                expected, reason = None, error
            program.stdin.write(json.dumps({"template": source, "variables": variables, "time": NOW}) + "\n")
            program.stdin.flush()
            reply = json.loads(program.stdout.readline())
            total += 1
            rendered += expected is not None
            if reply.get("text") == expected:
                agree += 1
                continue
            print(f"DIFFERENT {name}: {title}")
            if options.verbose:
                print("  jinja2:", repr(expected) if expected is not None else f"{type(reason).__name__}: {reason}")
                print("  shu:   ", repr(reply.get("text", "ERROR " + reply.get("error", ""))))
        complete += total - agree == before
    program.stdin.close()
    program.wait()
    print(json.dumps({"templates": len(sources), "templates_equal": complete, "renders": total, "equal": agree,
                      "rendered_by_jinja2": rendered, "jinja2": jinja2.__version__}))
    return agree != total


if __name__ == "__main__":
    sys.exit(main())
