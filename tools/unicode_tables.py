#!/usr/bin/env python3
"""Writes src/text/unicode_table.h: the character classes that pre-tokenizers ask for.

    pip install unicodedata2==15.1.0        # the Unicode version that llama.cpp's tables have
    tools/unicode_tables.py > src/text/unicode_table.h
    tools/unicode_tables.py --compare LLAMA_CPP/src/unicode-data.cpp   # exit 1 if any code point differs

Classes: 0 other, 1 letter (\\p{L}), 2 number (\\p{N}), 3 white space (White_Space=yes).
A two-stage table: a block number per 128 code points, then the block's classes, four to a byte.
"""
import re
import sys

import unicodedata2

OTHER, LETTER, NUMBER, SPACE = range(4)
BLOCK = 128
LIMIT = 0x110000
# White_Space=yes in PropList.txt, unchanged since Unicode 6.3.
WHITE_SPACE = [*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]


def read_classes():
    classes = bytearray(LIMIT)
    for scalar in range(LIMIT):
        classes[scalar] = {"L": LETTER, "N": NUMBER}.get(unicodedata2.category(chr(scalar))[0], OTHER)
    for scalar in WHITE_SPACE:
        classes[scalar] = SPACE
    return classes, unicodedata2.unidata_version


def pack(block):
    return bytes(sum(block[i + k] << (2 * k) for k in range(4)) for i in range(0, BLOCK, 4))


def emit(name, values, ctype):
    print(f"static const {ctype} {name}[{len(values)}] = {{")
    for i in range(0, len(values), 24):
        print("    " + ",".join(str(v) for v in values[i : i + 24]) + ",")
    print("};")


def write_table():
    classes, version = read_classes()
    blocks, stage = {}, []
    for start in range(0, LIMIT, BLOCK):
        block = pack(classes[start : start + BLOCK])
        stage.append(blocks.setdefault(block, len(blocks)))
    assert len(blocks) < 256
    print(f"/* Made by tools/unicode_tables.py from the Unicode Character Database {version}. Do not edit. */")
    print("#ifndef UNICODE_TABLE_H\n#define UNICODE_TABLE_H\n\n#include <stdint.h>\n")
    print(f'#define UNICODE_TABLE_VERSION "{version}"\n')
    print("/* clang-format off */")
    emit("unicode_stage", stage, "uint8_t")
    emit("unicode_classes", [byte for block in blocks for byte in block], "uint8_t")
    print("/* clang-format on */\n\n#endif")


def compare(path):
    """Flags of llama.cpp: 0x02 number, 0x04 letter, 0x100 white space."""
    source = open(path, encoding="utf-8").read()
    theirs = bytearray(LIMIT)
    text = source.split("unicode_ranges_flags = {")[1].split("};")[0]
    ranges = [(int(a, 16), int(b, 16)) for a, b in re.findall(r"\{0x([0-9A-F]+), 0x([0-9A-F]+)\}", text)]
    for (start, flags), (end, _) in zip(ranges, ranges[1:]):
        for scalar in range(start, end):
            theirs[scalar] = LETTER if flags & 4 else NUMBER if flags & 2 else OTHER
    text = source.split("unicode_set_whitespace = {")[1].split("};")[0]
    for scalar in re.findall(r"0x([0-9A-F]+)", text):
        theirs[int(scalar, 16)] = SPACE
    ours, version = read_classes()
    wrong = [scalar for scalar in range(LIMIT) if ours[scalar] != theirs[scalar]]
    print(f"Unicode {version}: {LIMIT - len(wrong)} of {LIMIT} code points agree")
    print("".join(f"U+{w:04X} " for w in wrong[:20]), end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "--compare":
        sys.exit(compare(sys.argv[2]))
    write_table()
