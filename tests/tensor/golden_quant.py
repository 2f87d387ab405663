#!/usr/bin/env python3
"""Golden vectors for the block decoders, from the format descriptions alone.

Written bit by bit ("bit i of element e lies there"), in exact rational
arithmetic, so that it shares no structure with the C code. Random block bytes,
scales kept finite. Run: python3 golden_quant.py > golden_quant.bin

Output, little-endian, per type: name[8], u32 elements, u32 bytes, the block
bytes, then f64 values.
"""
import random
import struct
import sys
from fractions import Fraction


def half(data, at):
    return Fraction(struct.unpack_from("<e", data, at)[0])


def bits(data, at, bit, count):
    """`count` bits from bit `bit` of byte `at`, upwards."""
    return (data[at] >> bit) & ((1 << count) - 1)


def nibble32(data, at, e):
    """Element e of a 32-block: first 16 elements low nibbles, last 16 high."""
    return bits(data, at + e % 16, 0 if e < 16 else 4, 4)


def q4_0(b, e):
    return half(b, 0) * (nibble32(b, 2, e) - 8)


def q4_1(b, e):
    return half(b, 0) * nibble32(b, 4, e) + half(b, 2)


def q5_0(b, e):
    fifth = bits(b, 2 + e // 8, e % 8, 1)
    return half(b, 0) * (nibble32(b, 6, e) + 16 * fifth - 16)


def q5_1(b, e):
    fifth = bits(b, 4 + e // 8, e % 8, 1)
    return half(b, 0) * (nibble32(b, 8, e) + 16 * fifth) + half(b, 2)


def q8_0(b, e):
    return half(b, 0) * struct.unpack_from("<b", b, 2 + e)[0]


def two_bits(b, at, e):
    """2-bit planes of Q2_K and Q3_K: 128 elements share 32 bytes, 32 elements a bit pair."""
    return bits(b, at + e // 128 * 32 + e % 32, e % 128 // 32 * 2, 2)


def q2_k(b, e):
    scale, low = bits(b, e // 16, 0, 4), bits(b, e // 16, 4, 4)
    return half(b, 80) * scale * two_bits(b, 16, e) - half(b, 82) * low


def q3_k(b, e):
    g = e // 16
    low = bits(b, 96 + g % 8, 0 if g < 8 else 4, 4)
    high = bits(b, 96 + 8 + g % 4, g // 4 * 2, 2)
    q = two_bits(b, 32, e) - (0 if bits(b, e % 32, e // 32, 1) else 4)
    return half(b, 108) * (low + 16 * high - 32) * q


def six_bits(b, g):
    """Scale and minimum of group g in the 12 bytes at offset 4 of Q4_K and Q5_K."""
    if g < 4:
        return bits(b, 4 + g, 0, 6), bits(b, 8 + g, 0, 6)
    return (bits(b, 8 + g, 0, 4) + 16 * bits(b, g, 6, 2), bits(b, 8 + g, 4, 4) + 16 * bits(b, 4 + g, 6, 2))


def q4_k(b, e):
    scale, low = six_bits(b, e // 32)
    q = bits(b, 16 + e // 64 * 32 + e % 32, 0 if e % 64 < 32 else 4, 4)
    return half(b, 0) * scale * q - half(b, 2) * low


def q5_k(b, e):
    scale, low = six_bits(b, e // 32)
    q = bits(b, 48 + e // 64 * 32 + e % 32, 0 if e % 64 < 32 else 4, 4) + 16 * bits(b, 16 + e % 32, e // 32, 1)
    return half(b, 0) * scale * q - half(b, 2) * low


def q6_k(b, e):
    h, r = e // 128, e % 128
    low = bits(b, h * 64 + r % 64, 0 if r < 64 else 4, 4)
    high = bits(b, 128 + h * 32 + r % 32, r // 32 * 2, 2)
    scale = struct.unpack_from("<b", b, 192 + e // 16)[0]
    return half(b, 208) * scale * (low + 16 * high - 32)


TYPES = [  # name, elements, bytes, decoder, offsets of halves
    ("Q4_0", 32, 18, q4_0, [0]), ("Q4_1", 32, 20, q4_1, [0, 2]), ("Q5_0", 32, 22, q5_0, [0]),
    ("Q5_1", 32, 24, q5_1, [0, 2]), ("Q8_0", 32, 34, q8_0, [0]), ("Q2_K", 256, 84, q2_k, [80, 82]),
    ("Q3_K", 256, 110, q3_k, [108]), ("Q4_K", 256, 144, q4_k, [0, 2]), ("Q5_K", 256, 176, q5_k, [0, 2]),
    ("Q6_K", 256, 210, q6_k, [208]),
]


def main():
    rng = random.Random(2026)
    out = sys.stdout.buffer
    for name, elements, size, decode, halves in TYPES:
        blocks, values = bytearray(), []
        for _ in range(512 // elements):
            block = bytearray(rng.randrange(256) for _ in range(size))
            for at in halves:
                struct.pack_into("<e", block, at, rng.choice([-1, 1]) * rng.uniform(0.001, 0.2))
            values += [float(decode(block, e)) for e in range(elements)]
            blocks += block
        out.write(struct.pack("<8sII", name.encode(), len(values), len(blocks)))
        out.write(bytes(blocks) + struct.pack(f"<{len(values)}d", *values))


main()
