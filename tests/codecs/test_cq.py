"""CQ on keys and values whose channels depend on each other: what coupling is worth, and what it takes."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from kvkernels import cq
from kvstore.core.errors import InvalidInputError
from kvworker.calibrate.codebooks import codebooks
from kvworker.chunk import ChunkSpec
from kvworker.methods.quantize.cq import Cq
from tests.codecs.synth import DIM, Synthetic, layer

LLAMA_8B = ChunkSpec(32, 8, 256, 128, 128, "bfloat16")


@cache
def one_head(text_seed: int) -> Synthetic:
    """Return the first head of the synthetic layer, which is enough to tell."""
    whole = layer(text_seed)
    return Synthetic(whole.k[:, :1], whole.v[:, :1], whole.q[:1])


@cache
def missed(side: str, couple: int, bits: int) -> float:
    """Return the squared error over the variance of channels of K or V of another text than the one calibrated on."""
    runs = cq.runs_of(getattr(one_head(100), side)[0, :, 5:], couple)
    books = codebooks(runs.flatten(0, 1), torch.ones(runs.shape[2]), 2**bits).view(1, 1, -1, 2**bits, couple)
    x = getattr(one_head(0), side)
    back = cq.decode(cq.encode(x, books), books, DIM, torch.float32)
    return float((back - x).square().sum() / (x - x.mean(2, keepdim=True)).square().sum())


@pytest.mark.parametrize("side", ["k", "v"])
def test_coupled_channels_need_fewer_bits(side: str) -> None:
    """The paper's check: at one bit a value the error falls with every coupling, from one channel to eight by 1.4 at least."""
    found = [missed(side, couple, couple) for couple in (1, 2, 4, 8)]
    assert found == sorted(found, reverse=True)
    assert found[0] / found[-1] >= 1.4


def test_four_channels_in_a_byte_beat_four_channels_of_two_bits() -> None:
    """By 1.3 at least."""
    assert missed("k", 1, 2) / missed("k", 4, 8) >= 1.3


def test_the_error_of_keys_is_that_of_the_method_file() -> None:
    assert missed("k", 1, 1) == pytest.approx(0.367, rel=0.1)
    assert missed("k", 8, 8) == pytest.approx(0.223, rel=0.1)


@pytest.mark.parametrize(("couple", "bits", "expected"), [(2, 8, 4.0), (4, 8, 2.0), (8, 8, 1.0), (8, 10, 1.25)])
def test_a_model_with_heads_of_128_channels_takes_the_bits_of_the_paper(couple: int, bits: int, expected: float) -> None:
    layout = Cq(couple=couple, bits=bits).layout(LLAMA_8B).values()
    assert 8 * sum(math.prod(shape) for _, shape in layout) / LLAMA_8B.n_values == expected


def test_few_points_are_their_own_codebook() -> None:
    points = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    assert codebooks(points, torch.ones(3), 4).tolist() == [[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [5.0, 6.0]]]


def test_points_that_are_all_alike_make_vectors_like_them() -> None:
    assert torch.equal(codebooks(torch.full((2, 9, 4), 0.5), torch.ones(9), 4), torch.full((2, 4, 4), 0.5).half())


def test_heavy_points_draw_vectors_to_them() -> None:
    points = torch.tensor([0.0, 1.0, 10.0, 11.0]).view(1, 4, 1)
    assert codebooks(points, torch.tensor([1.0, 3.0, 1.0, 1.0]), 2).flatten().sort().values.tolist() == [0.75, 10.5]


@pytest.mark.parametrize("params", [{"couple": 3}, {"bits": 7}, {"couple": 16}])
def test_what_it_cannot_do_is_refused(params: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match="choose couple in"):
        Cq(**params)
