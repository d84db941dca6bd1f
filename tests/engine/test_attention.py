"""Blockwise attention of scattered rows equals attention under one dense position mask."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from kvworker.engine.attention import attend, sight_of

CPU = torch.device("cpu")


def dense(rows: list[int], window: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return attention (1, S, Q, D) under the mask key position <= row position, and inside the window."""
    at, keys = torch.tensor(rows)[:, None], torch.arange(k.shape[2])
    visible = (keys <= at) & ((keys > at - window) if window else True)
    return scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("window", [0, 1, 5, 31, 32, 33, 200])
@pytest.mark.parametrize("n_rows", [1, 2, 31, 32, 33, 65, 150])
def test_blocks_of_rows_see_what_a_dense_mask_shows(n_rows: int, window: int) -> None:
    """Row counts around the block size; the last row ends the sequence, as in every prompt."""
    n_tokens = 150
    rows = [*sorted(random.Random(n_rows).sample(range(n_tokens - 1), n_rows - 1)), n_tokens - 1]
    generator = torch.Generator().manual_seed(window)
    q = torch.randn(1, 4, n_rows, 8, generator=generator)
    k, v = torch.randn(2, 1, 2, n_tokens, 8, generator=generator)
    out, _ = attend(torch.nn.Identity(), q, k, v, sight_of(rows, window, torch.float32, CPU), scaling=8**-0.5)
    torch.testing.assert_close(out, dense(rows, window, q, k, v), rtol=0, atol=2e-6)  # outputs below 3: ten roundings of 2**-23


def test_a_plain_causal_prefill_needs_no_mask() -> None:
    """So that the computed baseline is as fast as the library's own."""
    (block,) = sight_of(range(300), 0, torch.float32, CPU).blocks
    assert block.is_causal
    assert block.mask is None


def test_a_single_row_reads_the_keys_in_its_window_and_no_others() -> None:
    """Decoding on a sliding layer costs the window, not the sequence."""
    (block,) = sight_of([99], 10, torch.float32, CPU).blocks
    assert (block.first, block.behind, block.mask) == (90, 100, None)
