"""Changes to bytes that parsers tend to get wrong: lengths at their limits, ends cut off, numbers too large, halves of two inputs."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

MAX_NBYTES = 1 << 16
_NUMBERS = (
    0,
    1,
    2,
    15,
    63,
    64,
    127,
    128,
    255,
    256,
    4095,
    4096,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**63 - 1,
    2**64 - 1,
)
_WORDS = (
    b"-1", b"0", b"1e999", b"-1e-999", b"NaN", b"Infinity", b"9" * 400, b"null", b"true", b"[]", b"{}", b'""', b"[" * 2000, b'{"a":' * 500,
    b'"\\ud800"', b"\xff\xfe", b"\x00", b"\r\n", b"$-1\r\n", b"../", b"%s%n", b"\xef\xbb\xbf", b"1_0", b"0x10", b" ",
)  # fmt: skip


def flip(data: bytearray, rng: random.Random) -> None:
    """Flip a bit."""
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, rng: random.Random) -> None:
    """Write a number at the edge of its range, of any width."""
    spelled = struct.pack("<Q", rng.choice(_NUMBERS) % 2**64)[: rng.choice((1, 2, 4, 8))]
    if len(data) >= len(spelled):
        at = rng.randrange(len(data) - len(spelled) + 1)
        data[at : at + len(spelled)] = spelled


def cut(data: bytearray, rng: random.Random) -> None:
    """Take a run of bytes out, often to the end."""
    if data:
        at = rng.randrange(len(data))
        del data[at : len(data) if rng.random() < 0.3 else at + 1 + rng.randrange(16)]


def repeat(data: bytearray, rng: random.Random) -> None:
    """Say a run of bytes again."""
    if data:
        at = rng.randrange(len(data))
        data[at:at] = data[at : at + 1 + rng.randrange(64)] * rng.choice((1, 1, 2, 50))


def insert(data: bytearray, rng: random.Random) -> None:
    """Put in random bytes, or words that mean something to some parser."""
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(_WORDS) if rng.random() < 0.6 else rng.randbytes(1 + rng.randrange(8))


def replace_number(data: bytearray, rng: random.Random) -> None:
    """Write another number where one is spelled in digits."""
    starts = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if starts:
        at = end = rng.choice(starts)
        while end < len(data) and 48 <= data[end] <= 57:
            end += 1
        data[at:end] = rng.choice((b"%d" % rng.choice(_NUMBERS), b"-1", b"1.5", b"9" * 400, b"1e400"))


_CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (flip, overwrite, cut, repeat, insert, replace_number)


def mutate(corpus: Sequence[bytes], rng: random.Random) -> bytes:
    """Return a changed copy of one input, sometimes with the rest of another one behind it."""
    data = bytearray(rng.choice(corpus))
    if rng.random() < 0.1:
        other = rng.choice(corpus)
        data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        rng.choice(_CHANGES)(data, rng)
    return bytes(data[:MAX_NBYTES])
