"""Byte stages behind exact planes and behind codes: what they pack comes back whatever it is."""

from __future__ import annotations

from tests.contracts.codecs import Case

CASES = (
    Case("exponent_split+top16", in_numpy=True),
    Case("exponent_split+rans:fields=exponent", in_numpy=True),
    Case("exponent_split+deflate:fields=exponent", in_numpy=True),
    Case("raw+planes", in_numpy=True),
    Case("int8+lz4", in_numpy=True),
)
