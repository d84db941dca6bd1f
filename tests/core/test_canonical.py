"""Canonical JSON: one value, one spelling."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core import canonical
from kvstore.core.errors import FormatError

LEAVES = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=10
)
OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=5)


@given(value=OBJECTS)
def test_what_is_written_reads_back_the_same(value: dict[str, object]) -> None:
    """And is written the same again."""
    data = canonical.dumps(value)
    assert canonical.loads(data) == value
    assert canonical.dumps(canonical.loads(data)) == data


@given(value=OBJECTS)
def test_the_order_of_keys_does_not_matter(value: dict[str, object]) -> None:
    """Digests would depend on how a program was written."""
    assert canonical.dumps(dict(reversed(value.items()))) == canonical.dumps(value)
    assert canonical.digest(value) == hashlib.sha256(canonical.dumps(value)).digest()


@given(value=OBJECTS)
def test_every_other_spelling_is_refused(value: dict[str, object]) -> None:
    """Else one chunk would have many manifests."""
    canonical_text = canonical.dumps(value)
    for text in (
        json.dumps(value, indent=1),
        json.dumps(value, sort_keys=True, separators=(",", ":")) + " ",
        json.dumps(value, ensure_ascii=False),
    ):
        if text.encode("utf-8", "surrogatepass") != canonical_text:
            with pytest.raises(FormatError):
                canonical.loads(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"3",
        b'"text"',
        b'{"a":1,"a":1}',
        b'{"b":1,"a":1}',
        b'{"a": 1}',
        b'{"a":1.0e5}',
        b'{"a":-0}',
        b'{"a":01}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e999}',
        b'{"a":"\xc3\xa9"}',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"1" * 5000 + b"}",
        '{"a":1}'.encode("utf-16"),
    ],
)
def test_what_is_no_canonical_object_is_refused(data: bytes) -> None:
    """By an error of ours, whatever the parser would say."""
    with pytest.raises(FormatError):
        canonical.loads(data)


@given(data=st.binary(max_size=60))
def test_any_bytes_are_an_object_or_an_error_of_ours(data: bytes) -> None:
    """Manifests come from disks and networks."""
    with suppress(FormatError):
        assert canonical.dumps(canonical.loads(data)) == data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_have_are_refused(value: float) -> None:
    """They would not read back."""
    with pytest.raises(ValueError, match="JSON"):
        canonical.dumps({"a": value})
