"""Byte stages behind exact planes and behind codes: what they pack comes back whatever it is."""

from __future__ import annotations

from tests.contracts.codecs import Case

CASES = (
    Case("exponent_split+top16"),
    Case("exponent_split+rans:fields=exponent"),
    Case("exponent_split+deflate:fields=exponent"),
    Case("raw+planes"),
    Case("int8+lz4"),
)
