"""CSR on keys before and after RoPE: what a dictionary knows of them, and what it takes."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from kvkernels import csr
from kvstore.core.errors import InvalidInputError
from kvstore.core.identity import RopeSpec
from kvworker.calibrate.dictionary import dictionary
from kvworker.chunk import ChunkSpec
from kvworker.engine.rope import placed
from kvworker.methods.quantize.csr import Csr
from tests.codecs.synth import DIM, layer, relative_error

LLAMA_8B = ChunkSpec(32, 8, 256, 128, 128, "bfloat16")
STEPS = {4: 1.0, 8: 2.0, 16: 4.0}
"""Bits a value by steps, for heads of 128 channels."""


def keys(text_seed: int, when: str) -> torch.Tensor:
    """Return the keys (H, T, D) of two heads of the synthetic layer, before or after RoPE."""
    k = layer(text_seed).k[0, :2]
    return k if when == "before" else placed(k, RopeSpec("default", 1e4, DIM), 0)


@cache
def missed(when: str) -> dict[int, float]:
    """Return the error of keys of another text than the dictionary's, by steps."""
    atoms = dictionary(csr.pieces_of(keys(100, when)[:, 5:], 1), 1024, 8)[None]
    x = keys(0, when)[None]
    return {
        steps: relative_error(csr.decode(*csr.encode(x, atoms, 1, steps), atoms, DIM, 1, torch.float32), x)
        for steps in (STEPS if when == "before" else (4,))
    }


def test_a_dictionary_knows_keys_before_rope_better_than_after() -> None:
    """The method's check: at one bit a value at most 0.75 of the error."""
    assert missed("before")[4] <= 0.75 * missed("after")[4]


def test_more_steps_miss_less() -> None:
    """As the method file has it within a tenth, with four heads; here are two, and half as much to learn from."""
    found = missed("before")
    assert [found[steps] for steps in STEPS] == pytest.approx([0.31, 0.24, 0.20], rel=0.1)


@pytest.mark.parametrize(("stage", "bits"), [(Csr(k_steps=s, v_steps=s // 2), b) for s, b in STEPS.items()])
def test_heads_of_128_channels_take_the_bits_of_the_paper(stage: Csr, bits: float) -> None:
    layout = stage.layout(LLAMA_8B).values()
    nbytes = sum(math.prod(shape) * (2 if dtype == "float16" else 1) for dtype, shape in layout)
    assert 8 * nbytes / LLAMA_8B.n_values == bits


def test_few_pieces_are_their_own_atoms() -> None:
    pieces = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    atoms = dictionary(pieces, 4, 1)
    found = sorted({tuple(atom) for atom in atoms.tolist()})
    assert found == [pytest.approx((0.0, -1.0)), pytest.approx((0.6, 0.8)), pytest.approx((1.0, 0.0))]


def test_learning_helps() -> None:
    """Against pieces as they are drawn."""
    draw = torch.Generator().manual_seed(0)
    truth = torch.randn(24, 8, generator=draw)
    pieces = truth[torch.randint(0, 24, (2000,), generator=draw)] + 0.3 * torch.randn(2000, 8, generator=draw)
    drawn = pieces[:24] / pieces[:24].norm(dim=1, keepdim=True)
    learnt, plain = (float(csr.pursue(pieces, atoms, 1)[2].norm()) for atoms in (dictionary(pieces, 24, 1), drawn))
    assert learnt < 0.9 * plain


@pytest.mark.parametrize("params", [{"k_steps": 0}, {"v_steps": 65}, {"k_split": 3}, {"atoms": 8}, {"atoms": 40_000}])
def test_what_it_cannot_do_is_refused(params: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match="choose 1 to 64 steps"):
        Csr(**params)
