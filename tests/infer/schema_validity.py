#!/usr/bin/env python3
"""Random JSON Schemas against Python's jsonschema: whatever reaches an end token must be valid.

    tests/infer/schema_validity.py [--walk build/…/schema_walk] [--vocabulary MODEL] [--schemas 1000] [--seed 1]
    tests/infer/schema_validity.py --shu build/…/shu --model MODEL [--schemas 1000]

The first form draws random tokens (schema_walk, one of the allowed ones at each step), with a model's vocabulary or a
small one; the second lets the model itself answer through `shu run --schema`. Exit code 0: every finished text is
valid, the mask and the automaton never disagree, and nothing supported was refused.
"""
import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile

import jsonschema

WORDS = ["name", "age", "id", "price", "tags", "名称", "用法", "unit", "a b", "q\"uote", "back\\slash",
         "email", "x", "y", "z", "n"]
PATTERNS = ["^[a-z]{2,5}$", "^[A-Z][a-z]*$", "\\d{3}", "^(foo|bar)+$", "^[^\\s]{1,8}$", "^\\w+@\\w+\\.com$",
            "^-?\\d+(\\.\\d+)?$",
            "[\u4e00-\u9fff]+", "^a|b$", "^[\"\\\\]{1,3}$", "^(?:x[yz]?){1,3}$", "^[^abc]$", "^.{2,4}$",
            "^\\u0041\\x42?$", "a.c"]
FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email"]


class Maker:
    """Random schemas, nested to a depth; definitions may refer to themselves."""

    def __init__(self, seed):
        self.r = random.Random(seed)

    def bound(self):
        r = self.r
        return r.choice([r.randint(-20, 20), r.randint(-100000, 100000), round(r.uniform(-50, 50), r.randint(0, 4)),
                         r.randint(0, 9), 0, 0.5, 1e6, -0.001])

    def number(self):
        r = self.r
        s = {"type": r.choice(["integer", "number"])}
        if r.random() < 0.6:
            s[r.choice(["minimum", "exclusiveMinimum"])] = self.bound()
        if r.random() < 0.6:
            low = s.get("minimum", s.get("exclusiveMinimum", self.bound()))
            s[r.choice(["maximum", "exclusiveMaximum"])] = low + r.choice([2, 7, 1.5, 30, 1000, 12345.75])
        if s["type"] == "integer" and r.random() < 0.3:
            s["multipleOf"] = r.choice([1, 10, 100])
            for key in ("maximum", "exclusiveMaximum"):
                if key in s:
                    s[key] += 200
        return s

    def string(self):
        r = self.r
        s = {"type": "string"}
        kind = r.random()
        if kind < 0.35:
            if r.random() < 0.6:
                s["minLength"] = r.randint(0, 6)
            if r.random() < 0.7:
                s["maxLength"] = s.get("minLength", 0) + r.randint(0, 20)
        elif kind < 0.65:
            s["pattern"] = r.choice(PATTERNS)
            if r.random() < 0.2 and "{" not in s["pattern"]:
                s["maxLength"] = r.randint(6, 12)
        elif kind < 0.85:
            s["format"] = r.choice(FORMATS)
        return s

    def value(self, depth=0):
        r = self.r
        kind = r.randint(0, 7 if depth < 2 else 5)
        if kind == 6:
            return [self.value(depth + 1) for _ in range(r.randint(0, 3))]
        if kind == 7:
            return {r.choice(WORDS): self.value(depth + 1) for _ in range(r.randint(0, 3))}
        return [None, r.random() < 0.5, r.randint(-1000, 1000), round(r.uniform(-9, 9), 3), r.choice(WORDS),
                "\n\t\u0001中🙂/"][kind]

    def enum(self):
        r = self.r
        if r.random() < 0.3:
            return {"const": self.value()}
        values = [self.value() for _ in range(r.randint(1, 6))]
        s = {"enum": values}
        if r.random() < 0.3:
            s["type"] = ["string", "integer", "null", "number", "boolean", "array", "object"]
        return s

    def object(self, depth):
        r = self.r
        s = {"type": "object"}
        keys = r.sample(WORDS, r.randint(0, 5))
        if keys or r.random() < 0.5:
            s["properties"] = {key: self.schema(depth + 1) for key in keys}
        required = [key for key in keys if r.random() < 0.5]
        if required:
            s["required"] = required
        more = r.random()
        if more < 0.4:
            s["additionalProperties"] = False
        elif more < 0.6:
            s["additionalProperties"] = r.choice([True, self.schema(depth + 2)])
        if r.random() < 0.05 and s.get("additionalProperties") is not False:
            s.setdefault("required", []).append("extra")
        return s

    def array(self, depth):
        r = self.r
        s = {"type": "array"}
        if r.random() < 0.8:
            s["items"] = self.schema(depth + 1)
        if r.random() < 0.3:
            s["prefixItems"] = [self.schema(depth + 1) for _ in range(r.randint(1, 3))]
        if r.random() < 0.4:
            s["minItems"] = r.randint(0, 4)
        if r.random() < 0.4:
            s["maxItems"] = s.get("minItems", 0) + r.randint(0, 4)
        return s

    def choice(self, depth):
        r = self.r
        kind = r.random()
        if kind < 0.4:
            return {"anyOf": [self.schema(depth + 1) for _ in range(r.randint(1, 3))]}
        if kind < 0.6:
            return {"oneOf": [self.object(depth + 1), self.string(), {"type": "null"}]}
        if kind < 0.8:
            tags = r.sample(WORDS, 2)
            branches = [{"type": "object", "properties": {"kind": {"const": tag}, tag: self.schema(depth + 2)},
                         "required": ["kind"]} for tag in tags]
            return {"oneOf": branches}
        a, b = self.object(depth + 1), self.object(depth + 1)
        a.pop("additionalProperties", None)
        b.pop("additionalProperties", None)
        for key in set(a.get("properties", {})) & set(b.get("properties", {})):
            del b["properties"][key]
        return {"allOf": [a, b]}

    def schema(self, depth=0):
        r = self.r
        kinds = [self.number, self.string, self.enum,
                 lambda: {"type": r.choice(["boolean", "null", ["string", "null"], ["integer", "null"]])}]
        if depth < 4:
            kinds += [lambda: self.object(depth), lambda: self.object(depth), lambda: self.array(depth),
                      lambda: self.choice(depth)]
            if r.random() < 0.05:
                return r.choice([True, {}, {"description": "anything"}])
        if self.defs and r.random() < 0.08:
            s = {"$ref": "#/$defs/" + r.choice(self.defs)}
            if depth:
                return s
        s = r.choice(kinds)()
        if r.random() < 0.1:
            s["title"] = "t"
        return s

    def document(self):
        """A whole schema. Definitions refer to each other only where they may also stop."""
        r = self.r
        self.defs = r.sample(["node", "leaf", "list"], r.randint(0, 2))
        s = self.schema()
        s = s if isinstance(s, dict) else {}
        names, self.defs = self.defs, []
        defs = {}
        for name in names:
            inner = self.object(2)
            inner.setdefault("properties", {})["next"] = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/" + name}]}
            defs[name] = inner
        if defs:
            s["$defs"] = defs
        return s


def format_checker():
    """The standard's formats; those that jsonschema leaves to optional packages are checked here."""
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER

    @checker.checks("date-time", ValueError)
    def date_time(text):
        return not isinstance(text, str) or datetime.datetime.fromisoformat(text).tzinfo is not None

    @checker.checks("time", ValueError)
    def time(text):
        return not isinstance(text, str) or datetime.time.fromisoformat(text).tzinfo is not None

    return checker


def satisfiable_problem(message):
    """Random demands may contradict each other: that is not a refusal of something supported."""
    return "no text can match" in message


def walk(options, schemas):
    command = [options.walk] + ([options.vocabulary] if options.vocabulary else [])
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    for number, schema in enumerate(schemas):
        request = {"schema": schema, "seed": options.seed * 1000003 + number, "tokens": options.tokens}
        program.stdin.write(json.dumps(request) + "\n")
        program.stdin.flush()
        yield schema, json.loads(program.stdout.readline())
    program.stdin.close()
    program.wait()


def run_model(options, schemas):
    for number, schema in enumerate(schemas):
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
            json.dump(schema, file)
            file.flush()
            command = [options.shu, "run", options.model,
                       "-p", "Write a JSON value that fits the schema: " + json.dumps(schema),
                       "-n", str(options.tokens), "--temp", "0.8", "--seed", str(number),
                       "--schema", file.name, "--json"]
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        reply = json.loads(done.stdout or "{}")
        if "error" in reply:
            reply["error"] = reply["error"]["message"]
        reply["text"] = reply.get("answer")
        reply["tokens"] = reply.get("tokens", {}).get("completion", 0)
        reply["finished"] = reply.get("finish_reason") == "stop"
        yield schema, reply


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--walk", default="build/release/schema_walk")
    parser.add_argument("--vocabulary", help="a GGUF file whose tokens are used")
    parser.add_argument("--shu")
    parser.add_argument("--model")
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=80, help="soft limit of a walk; hard limit of a model's answer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    schemas = [Maker(options.seed * 100003 + i).document() for i in range(options.schemas)]
    checker = format_checker()
    count = dict(schemas=0, finished=0, valid=0, unfinished=0, contradictory=0, refused=0, disagree=0)
    step_us, slowest, compile_us, steps = 0.0, 0.0, 0.0, 0
    for schema, reply in run_model(options, schemas) if options.shu else walk(options, schemas):
        count["schemas"] += 1
        if "error" in reply:
            kind = "contradictory" if satisfiable_problem(reply["error"]) else "refused"
            count[kind] += 1
            if kind == "refused" or options.verbose:
                print(kind, json.dumps(schema, ensure_ascii=False), reply["error"])
            continue
        count["disagree"] += bool(reply.get("disagrees"))
        if reply.get("disagrees"):
            print("DISAGREE", json.dumps(schema, ensure_ascii=False))
        step_us += reply.get("step_us", 0) * reply.get("tokens", 0)
        steps += reply.get("tokens", 0)
        slowest = max(slowest, reply.get("slowest_us", 0))
        compile_us += reply.get("compile_us", 0)
        if not reply["finished"]:
            count["unfinished"] += 1
            if options.verbose:
                print("unfinished", json.dumps(schema, ensure_ascii=False), repr(reply.get("text"))[:300])
            continue
        count["finished"] += 1
        try:
            jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(reply["text"]))
            count["valid"] += 1
        except Exception as error:  # not JSON at all, or not valid
            print("INVALID", json.dumps(schema, ensure_ascii=False), repr(reply.get("text")), str(error).split("\n")[0])
    count.update(step_us=round(step_us / max(steps, 1), 1), slowest_us=round(slowest), steps=steps,
                 compile_us=round(compile_us / max(count["schemas"], 1)))
    print(json.dumps(count))
    bad = count["finished"] - count["valid"] + count["refused"] + count["disagree"]
    return bad > 0 or count["finished"] < 0.8 * count["schemas"]


if __name__ == "__main__":
    sys.exit(main())
