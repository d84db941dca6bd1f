"""What the last rows of an exported passage ask for, in every family."""

from __future__ import annotations

import torch

from kvstore.core.identity import LayerGroup
from kvworker.chunk import KVChunk
from kvworker.engine.asked import asked_of, last_rows
from kvworker.engine.engine import N_PROBES
from tests.engine.prompts import Tiny, random_passages


def shares(asked: torch.Tensor) -> torch.Tensor:
    """Return what is asked as shares: a study's queries are scaled as scores are."""
    return asked / asked.sum()


def told(chunk: KVChunk, n: int) -> torch.Tensor:
    """Return what an exported chunk says of its n-th layer."""
    assert chunk.asked is not None
    return chunk.asked[n]


def test_an_exported_passage_says_what_its_last_rows_ask_for(tiny: Tiny) -> None:
    """As a study of the same text does by its probes, which went through the attention itself."""
    (ids,) = random_passages([50])
    probes = tiny.engine.study(ids).probes
    for group, chunk in zip(tiny.engine.identity.layout.groups, tiny.engine.export([ids], n_observed=N_PROBES)[0], strict=True):
        for n, layer in enumerate(group.layers):
            torch.testing.assert_close(shares(told(chunk, n)), shares(asked_of(probes[layer], group)), rtol=1e-3, atol=1e-6)


def test_each_passage_of_a_document_has_its_own(llama: Tiny) -> None:
    """Rows of a passage see what precedes it, and no row of what follows counts."""
    passages = random_passages([9, 40, 20])
    whole = llama.engine.export(passages, n_observed=N_PROBES)
    begun = llama.engine.export(passages[:2], n_observed=N_PROBES)
    for own, same in zip(whole[1], begun[1], strict=True):
        assert own.asked is not None
        torch.testing.assert_close(own.asked, same.asked)
    assert not torch.allclose(told(whole[1][0], 0), told(whole[2][0], 0))


def test_the_last_rows_of_each_passage_are_observed() -> None:
    assert last_rows([(0, 3), (3, 50)], 32) == [range(3), range(18, 50)]


def test_nothing_is_observed_where_nobody_asks(llama: Tiny) -> None:
    assert [chunk.asked for kv in llama.engine.export(random_passages([9, 4])) for chunk in kv] == [None] * 4


def test_query_heads_are_meaned_over_their_kv_head() -> None:
    """Two KV heads of two query heads each; without rotation channels stay apart."""
    queries = torch.zeros(4, 1, 2)
    queries[0, 0, 0], queries[1, 0, 0], queries[3, 0, 1] = 1.0, 3.0, 2.0
    assert asked_of(queries, LayerGroup((0,), 2, 2, 2, None)).tolist() == [[5.0, 0.0], [0.0, 2.0]]
