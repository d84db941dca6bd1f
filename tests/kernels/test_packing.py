"""Codes in bytes: nothing lost, nothing wasted, and bytes from outside make no code that does not exist."""

from __future__ import annotations

import pytest
import torch

from kvkernels.packing import WORDS, pack, packed_nbytes, unpack

each_size = pytest.mark.parametrize("n_codes", [1, 2, 3, 4, 5, 7, 8, 9, 63, 257])
each_levels = pytest.mark.parametrize("levels", WORDS)


@each_size
@each_levels
def test_codes_come_back(levels: int, n_codes: int) -> None:
    codes = torch.randint(0, levels, (2, 3, n_codes), generator=torch.Generator().manual_seed(0))
    data = pack(codes, levels)
    assert data.shape == (2, 3, packed_nbytes(n_codes, levels))
    assert torch.equal(unpack(data, n_codes, levels).long(), codes)


@each_size
@each_levels
def test_the_largest_codes_come_back(levels: int, n_codes: int) -> None:
    """Where a word is full to the last bit."""
    codes = torch.full((n_codes,), levels - 1)
    assert torch.equal(unpack(pack(codes, levels), n_codes, levels).long(), codes)


@each_size
@pytest.mark.parametrize("levels", [levels for levels in WORDS if levels & levels - 1 == 0])
def test_powers_of_two_take_their_bits_and_no_more(levels: int, n_codes: int) -> None:
    assert packed_nbytes(n_codes, levels) == -(-n_codes * (levels.bit_length() - 1) // 8)


def test_five_ternary_codes_take_a_byte() -> None:
    assert [packed_nbytes(n, 3) for n in (1, 5, 6, 128)] == [1, 1, 2, 26]
    assert pack(torch.tensor([1, 2, 0, 1, 2]), 3).tolist() == [1 + 2 * 3 + 27 + 2 * 81]


@pytest.mark.parametrize(("levels", "codes", "data"), [(4, [1, 2, 3, 0, 3], [0b00111001, 3]), (8, [1, 2, 7, 5], [0b11010001, 0b1011])])
def test_the_first_code_has_the_lowest_bits(levels: int, codes: list[int], data: list[int]) -> None:
    assert pack(torch.tensor(codes), levels).tolist() == data


@each_levels
def test_any_bytes_make_codes_that_exist(levels: int) -> None:
    data = torch.arange(256, dtype=torch.uint8).repeat(30)[: packed_nbytes(1000, levels)]
    codes = unpack(data, 1000, levels)
    assert 0 <= int(codes.min()) <= int(codes.max()) < levels


def test_other_levels_and_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="7 levels cannot be packed"):
        pack(torch.zeros(3), 7)
    with pytest.raises(ValueError, match="9 codes of 4 levels take 3 B, got 2 B"):
        unpack(torch.zeros(2, dtype=torch.uint8), 9, 4)
