"""Passages that stand where they were read are an exact prefix: loaded, never repaired."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvstore.core.key import Kind, chain_keys
from kvworker.answer.policy import parse_policy
from kvworker.answer.prompt import Prompt
from kvworker.ingest.passages import Passage
from tests.engine.prompts import Lost

NAMESPACE = bytes(32)


def chained(*texts: tuple[int, ...]) -> list[Passage]:
    """Return a document's passages."""
    keys = chain_keys(NAMESPACE, Kind.DOCUMENT, texts)
    return [Passage(key, parent, ids, "d", i, "") for i, (key, parent, ids) in enumerate(zip(keys, [None, *keys], texts, strict=False))]


A, B, C = chained((1, 2, 3), (4, 5, 6), (7, 8, 9))
OTHER = chained((9, 9))[0]


@pytest.mark.parametrize(
    ("passages", "n_exact"),
    [([A, B, C], 3), ([A, C], 1), ([B, C], 0), ([A, OTHER, B], 1), ([OTHER, A], 1), ([], 0)],
)
def test_leading_passages_in_their_documents_order_are_exact(passages: Sequence[Passage], n_exact: int) -> None:
    """A chain that starts with a passage read alone at position 0 holds what a prefill of the prompt computes."""
    assert Prompt(tuple(passages), (1,)).n_exact == n_exact


def test_first_k_repairs_nothing_in_an_exact_prefix() -> None:
    """Repairing it would cost rows and change nothing."""
    prompt = Prompt((A, B, OTHER), (5,))
    segments = prompt.segments({i: Lost() for i in range(3)})
    assert parse_policy("first_k:k=1").select(segments) == [6, 8]
