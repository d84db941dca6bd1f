"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.errors import ConfigError
from kvstore.core.units import format_count, format_nbytes, parse_nbytes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        (7, 7),
        ("512MiB", 512 << 20),
        ("1.5 GB", 1_500_000_000),
        (" 2 kib ", 2048),
        ("3b", 3),
        ("1TB", 10**12),
        ("0.5KiB", 512),
        (2**60 + 1, 2**60 + 1),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_a_size_is_read(text: str | int, nbytes: int) -> None:
    """To the byte, also beyond what a float can count."""
    assert parse_nbytes(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "-1MiB", "1 MB 2", "1e9", "1PB", "nan", "inf", "1,5GB", "١MiB", "0x10", "1.", "9" * 5000]
)
def test_what_is_no_size_is_refused_with_the_units(text: str) -> None:
    """Also what no machine has."""
    with pytest.raises(ConfigError, match="MiB"):
        parse_nbytes(text)


@given(nbytes=st.integers(0, 2**62))
def test_plain_numbers_and_whole_units_read_back_exactly(nbytes: int) -> None:
    """No rounding on the way."""
    assert parse_nbytes(str(nbytes)) == parse_nbytes(f"{nbytes}B") == nbytes
    assert parse_nbytes(f"{nbytes}KiB") == nbytes * 1024


@given(nbytes=st.integers(0, 2**50))
def test_a_written_size_is_within_its_last_digit(nbytes: int) -> None:
    """Four digits and a unit are for people: half of the last one is 0.05 of the unit, at least 1 of it is there."""
    text = format_nbytes(nbytes)
    assert abs(parse_nbytes(text) - nbytes) <= 0.051 * max(nbytes, 1)


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (1 << 50, "1024.0 TiB")]
)
def test_a_size_is_written_in_the_largest_unit_below_it(nbytes: int, text: str) -> None:
    """There is none beyond TiB."""
    assert format_nbytes(nbytes) == text


@pytest.mark.parametrize(("n", "said"), [(0, "0 chunks"), (1, "1 chunk"), (2, "2 chunks")])
def test_one_thing_is_no_several(n: int, said: str) -> None:
    """As people say it."""
    assert format_count(n, "chunk") == said
