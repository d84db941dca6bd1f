"""Codes of a few levels packed into bytes along the last axis: the layout that all quantizers of this package share.

A word holds k codes as the digits of one number, code j having the weight levels**j; words are little-endian and follow each other. Codes
beyond the last one of a line are 0.

    levels    2  3  4  8  16  32  64  256  1024
    codes k   8  5  4  8   2   8   4    1     4
    bytes     1  1  1  3   1   5   3    1     5

Levels that are powers of two take exactly log2(levels) bits; 3 levels take 1.6.
"""

from __future__ import annotations

import torch

WORDS = {2: (8, 1), 3: (5, 1), 4: (4, 1), 8: (8, 3), 16: (2, 1), 32: (8, 5), 64: (4, 3), 256: (1, 1), 1024: (4, 5)}
"""Codes and bytes of a word, by levels."""


def packed_nbytes(n_codes: int, levels: int) -> int:
    """Return the bytes of a line of codes; whole words, less the bytes of the last one that hold no code."""
    per_word, word_nbytes = _word(levels)
    n_words, rest = divmod(n_codes, per_word)
    return n_words * word_nbytes + (-(-rest * word_nbytes // per_word) if word_nbytes > 1 else min(rest, 1))


def pack(codes: torch.Tensor, levels: int) -> torch.Tensor:
    """Return the bytes (..., packed_nbytes(N)) uint8 of integer codes (..., N) within 0 and levels - 1."""
    per_word, word_nbytes = _word(levels)
    n_codes = codes.shape[-1]
    padded = torch.nn.functional.pad(codes.to(_wide(word_nbytes)), (0, -n_codes % per_word))
    digits = padded.view(*codes.shape[:-1], -1, per_word)
    words = digits[..., 0].clone()
    for j in range(1, per_word):
        words.add_(digits[..., j], alpha=levels**j)
    planes = [(words >> 8 * n & 255).to(torch.uint8) for n in range(word_nbytes)]
    return torch.stack(planes, -1).flatten(-2)[..., : packed_nbytes(n_codes, levels)].contiguous()


def unpack(data: torch.Tensor, n_codes: int, levels: int) -> torch.Tensor:
    """Return codes (..., N) uint8, or int16 above 256 levels; bytes that no code makes give some code within 0 and levels - 1."""
    per_word, word_nbytes = _word(levels)
    if data.shape[-1] != packed_nbytes(n_codes, levels):
        raise ValueError(f"{n_codes} codes of {levels} levels take {packed_nbytes(n_codes, levels)} B, got {data.shape[-1]} B")
    padded = torch.nn.functional.pad(data, (0, -data.shape[-1] % word_nbytes))
    planes = padded.view(*data.shape[:-1], -1, word_nbytes)
    words = planes[..., 0].to(_wide(word_nbytes))
    for n in range(1, word_nbytes):
        words = words | planes[..., n].to(words.dtype) << 8 * n
    narrow = torch.uint8 if levels <= 256 else torch.int16
    digits = torch.empty((*words.shape, per_word), dtype=narrow, device=data.device)
    for j in range(per_word):
        digits[..., j] = words // levels**j % levels
    return digits.flatten(-2)[..., :n_codes]


def _word(levels: int) -> tuple[int, int]:
    """Return codes and bytes of a word, or raise ValueError."""
    if levels not in WORDS:
        raise ValueError(f"{levels} levels cannot be packed; choose one of {', '.join(map(str, WORDS))}")
    return WORDS[levels]


def _wide(word_nbytes: int) -> torch.dtype:
    """Return an integer type that holds a word."""
    return torch.int64 if word_nbytes > 3 else torch.int32
