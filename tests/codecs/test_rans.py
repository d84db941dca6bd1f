"""rANS: what goes in comes out, in about as many bits as the tables say, and damage is noticed."""

from __future__ import annotations

import numpy as np
import pytest

from kvstore import rans
from kvstore.core.errors import FormatError, InvalidInputError


def tables(n_blocks: int, period: int, n_kinds: int, seed: int = 0) -> rans.Frequencies:
    """Return tables of bell-shaped distributions, each about a place of its own."""
    middle = np.random.default_rng(seed).uniform(0.2, 0.8, (n_blocks, period, 1)) * n_kinds
    return rans.frequencies((1e6 * np.exp(-(((np.arange(n_kinds) - middle) / (0.1 * n_kinds + 0.5)) ** 2))).astype(np.int64))


def drawn(frequencies: rans.Frequencies, n_symbols: int, seed: int = 1) -> rans.Symbols:
    """Return symbols (B, N) that follow the tables."""
    slots = np.random.default_rng(seed).integers(0, rans.TOTAL, (len(frequencies), n_symbols))
    before = frequencies.cumsum(-1)[:, np.arange(n_symbols) % frequencies.shape[1]]
    return (slots[..., None] >= before).sum(-1).astype(np.uint8)


@pytest.mark.parametrize("n_kinds", [2, 3, 16, 32, 256])
@pytest.mark.parametrize("n_symbols", [1, 63, 1024, 1025, 5000])
def test_symbols_come_back(n_symbols: int, n_kinds: int) -> None:
    frequencies = tables(3, 7, n_kinds)
    symbols = drawn(frequencies, n_symbols)
    assert (rans.decode(rans.encode(symbols, frequencies), n_symbols, frequencies) == symbols).all()


def test_symbols_that_no_table_expects_come_back() -> None:
    """Every symbol has a frequency, 1 of 4,096 at least: it takes 12 bits."""
    frequencies = rans.frequencies(np.array([[[1 << 40, 0, 0, 0]]]))
    symbols = np.full((1, 500), 3, np.uint8)
    (stream,) = rans.encode(symbols, frequencies)
    assert (rans.decode([stream], 500, frequencies) == symbols).all()
    assert len(stream) == pytest.approx(500 * 12 / 8, abs=4)


def test_no_symbols_take_no_bytes() -> None:
    frequencies = tables(2, 1, 4)
    assert rans.encode(np.zeros((2, 0), np.uint8), frequencies) == [b"", b""]
    assert rans.decode([b"", b""], 0, frequencies).shape == (2, 0)


@pytest.mark.parametrize("n_kinds", [4, 32, 256])
def test_the_size_is_within_two_hundredths_of_the_cross_entropy(n_kinds: int) -> None:
    """The paper's check, lanes counted: 4 bytes for 1,024 symbols are 1.3 % of symbols of 2.4 bits."""
    frequencies = tables(2, 16, n_kinds)
    symbols = drawn(frequencies, 20_000)
    of_symbol = np.take_along_axis(frequencies[:, np.arange(20_000) % 16], symbols[..., None].astype(np.int64), -1)
    ideal = -np.log2(of_symbol / rans.TOTAL).sum() / 8
    lanes = 4 * 2 * 20
    stored = sum(map(len, rans.encode(symbols, frequencies)))
    assert ideal <= stored <= ideal * 1.002 + lanes
    assert n_kinds == 4 or stored <= 1.02 * ideal


def test_a_block_does_not_depend_on_the_blocks_beside_it() -> None:
    """So a reader may take some layers only."""
    frequencies = tables(3, 5, 8)
    symbols = drawn(frequencies, 3000)
    assert rans.encode(symbols, frequencies)[1:2] == rans.encode(symbols[1:2], frequencies[1:2])


def test_bytes_are_those_of_the_description() -> None:
    """Worked by hand: f is 1,365 of 4,096, c is 1,366; three symbols 1 take x from 65,536 over 197,974 and 595,290 to 1,787,286."""
    frequencies = rans.frequencies(np.ones((1, 1, 3), np.int64))
    assert frequencies.tolist() == [[[1366, 1365, 1365]]]
    x = 1 << 16
    for _ in range(3):
        x = x // 1365 * 4096 + x % 1365 + 1366
    assert rans.encode(np.ones((1, 3), np.uint8), frequencies) == [x.to_bytes(4, "little")]


@pytest.mark.parametrize("n_kinds", [2, 31, 256])
def test_frequencies_are_near_the_shares_and_never_zero(n_kinds: int) -> None:
    """One of 4,096 goes to every symbol and the rest by share: off by what that takes, and by less than one for whole numbers."""
    counts = np.random.default_rng(0).integers(0, 1 << 49, (5, n_kinds))
    counts[0] = 0
    found = rans.frequencies(counts)
    assert (found.sum(-1) == rans.TOTAL).all()
    assert found.min() >= 1
    weights = np.where(counts.sum(-1, keepdims=True) == 0, 1, counts)
    ideal = 1 + weights / weights.sum(-1, keepdims=True) * (rans.TOTAL - n_kinds)
    assert np.abs(found - ideal).max() < 1


@pytest.mark.parametrize("damage", ["shorter", "longer", "odd", "empty", "changed", "noise"])
def test_damage_is_noticed(damage: str) -> None:
    frequencies = tables(2, 3, 16)
    first, stream = rans.encode(drawn(frequencies, 4000), frequencies)
    noise = np.random.default_rng(2).bytes(len(stream))
    damaged = {
        "shorter": stream[:-2],
        "longer": stream + b"\0\0",
        "odd": stream[:-1],
        "empty": b"",
        "changed": stream[:40] + bytes([stream[40] ^ 255]) + stream[41:],
        "noise": noise[: len(noise) // 2 * 2],
    }[damage]
    with pytest.raises(FormatError, match="entropy coded stream of"):
        rans.decode([first, damaged], 4000, frequencies)


def test_what_no_table_knows_is_refused() -> None:
    frequencies = tables(1, 1, 4)
    with pytest.raises(InvalidInputError, match="symbol 4 under tables of 4 symbols"):
        rans.encode(np.full((1, 3), 4, np.uint8), frequencies)


@pytest.mark.parametrize("wrong", ["sum", "zero", "blocks", "type"])
def test_tables_that_are_none_are_refused(wrong: str) -> None:
    frequencies = tables(2, 1, 4)
    if wrong == "sum":
        frequencies[0, 0, 0] += 1
    if wrong == "zero":
        frequencies[0, 0, :2] = [0, frequencies[0, 0, :2].sum()]
    given = {"blocks": frequencies[:1], "type": frequencies.astype(np.int32)}.get(wrong, frequencies)
    with pytest.raises(InvalidInputError, match="tables of 2 blocks are uint16"):
        rans.encode(np.zeros((2, 3), np.uint8), given)
