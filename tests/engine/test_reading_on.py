"""A document is read on from stored passages: what is loaded is not computed, and what is computed is what a whole reading gives."""

from __future__ import annotations

import pytest
import torch

from kvstore.core.errors import InvalidInputError
from kvworker.chunk import PassageKV
from kvworker.engine.engine import LoadFailed
from tests.engine.prompts import Kept, Lost, Tiny, open_engine, random_passages

PASSAGES = random_passages([9, 1, 17, 13, 5])
ATOL = 1e-4  # the bound for every row of a spliced prompt in float32


def largest_difference(a: PassageKV, b: PassageKV) -> float:
    """Return by how much two passages differ at most."""
    return max(float((x - y).abs().max()) for one, other in zip(a, b, strict=True) for x, y in ((one.k, other.k), (one.v, other.v)))


@pytest.mark.parametrize("loaded", [(0,), (0, 1, 2), (0, 1, 2, 3), (0, 2), (1, 3), (4,)], ids=str)
def test_passages_read_behind_loaded_ones_are_those_of_a_whole_reading(tiny: Tiny, loaded: tuple[int, ...]) -> None:
    """In every family, with and without sliding windows, whatever is loaded between what is computed."""
    whole = tiny.engine.export(PASSAGES)
    found = tiny.engine.export(PASSAGES, {i: Kept(whole[i]) for i in loaded})
    computed = [i for i in range(len(PASSAGES)) if i not in loaded]
    assert max(largest_difference(found[at], whole[i]) for at, i in enumerate(computed)) < ATOL


def test_only_the_tokens_of_passages_without_a_source_are_read(tiny: Tiny) -> None:
    """That is what reading on saves."""
    engine, model = open_engine(tiny)
    whole = engine.export(PASSAGES)
    seen: list[int] = []
    model.get_decoder().embed_tokens.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    engine.export(PASSAGES, {i: Kept(whole[i]) for i in range(3)})
    assert seen == [13 + 5]


def test_results_own_their_memory(tiny: Tiny) -> None:
    """A queue holds them long after the pass."""
    whole = tiny.engine.export(PASSAGES)
    (last,) = tiny.engine.export(PASSAGES, {i: Kept(whole[i]) for i in range(4)})
    assert all(x.untyped_storage().nbytes() == x.nbytes for chunk in last for x in (chunk.k, chunk.v))


def test_a_source_that_fails_leaves_the_engine_ready(tiny: Tiny) -> None:
    """The caller reads the document from its start then."""
    whole = tiny.engine.export(PASSAGES)
    with pytest.raises(LoadFailed):
        tiny.engine.export(PASSAGES, {0: Lost()})
    assert torch.equal(tiny.engine.export(PASSAGES)[4][0].k, whole[4][0].k)


def test_there_must_be_something_to_compute(tiny: Tiny) -> None:
    """A reading that loads everything is a mistake of the caller's."""
    whole = tiny.engine.export(PASSAGES)
    with pytest.raises(InvalidInputError, match="at least one"):
        tiny.engine.export(PASSAGES, {i: Kept(kv) for i, kv in enumerate(whole)})
