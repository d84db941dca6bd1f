"""No computed row sees a later token, wherever the computed rows lie."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from kvworker.engine import stack
from kvworker.engine.arrangement import Arrangement
from kvworker.engine.attention import Block, Sight
from kvworker.engine.engine import always_computed
from tests.engine.prompts import Tiny, open_engine, random_passages, random_question, stored

LENGTHS = (9, 20, 14)
CHANGED = 21  # a computed row inside the second passage
ROWS = (2, 9, 10, 17, CHANGED, 24, 28, 29, 35)


def row_outputs(tiny: Tiny, token: int) -> tuple[list[int], torch.Tensor]:
    """Return the computed rows and their hidden states (S, hidden) behind the last layer, with `token` at row CHANGED."""
    engine, model = open_engine(tiny)
    caught: list[torch.Tensor] = []
    model.model.layers[-1].register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    passages = random_passages(LENGTHS)
    kv = [tiny.engine.export([passage])[0] for passage in passages]
    passages[1][CHANGED - LENGTHS[0]] = token
    segments = stored(passages, kv, random_question())
    rows = sorted({*always_computed(segments), *ROWS})
    engine.prefill(segments, rows)
    return rows, caught[0][0]


def changes(tiny: Tiny) -> tuple[torch.Tensor, torch.Tensor]:
    """Return by how much the rows before and from CHANGED differ between two prompts that differ there."""
    rows, one = row_outputs(tiny, 3)
    _, other = row_outputs(tiny, 77)
    first = rows.index(CHANGED)
    difference = (one - other).abs().amax(-1)
    return difference[:first], difference[first:]


def test_changing_a_token_changes_no_row_before_it(tiny: Tiny) -> None:
    """The rows before it are scattered over stored passages, where a mask for contiguous rows would be wrong."""
    before, _ = changes(tiny)
    assert before.max() == 0


def test_changing_a_token_changes_its_own_row_and_the_answer(tiny: Tiny) -> None:
    """Without this the test above would pass on an engine that ignores its input."""
    _, behind = changes(tiny)
    assert behind[0] > 1e-3
    assert behind[-1] > 1e-6 or tiny.engine.identity.layout.groups[0].window


def test_the_probe_notices_a_mask_aligned_to_the_bottom_right(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row i of S computed rows sees keys up to T - S + i under such a mask: its future, for every row but the question's."""

    def bottom_right(rows: Sequence[int], _window: int, dtype: torch.dtype, _device: torch.device, _arrangement: Arrangement) -> Sight:
        n_rows, n_tokens = len(rows), rows[-1] + 1
        mask = torch.full((n_rows, n_tokens), torch.finfo(dtype).min, dtype=dtype).triu(n_tokens - n_rows + 1)
        return Sight((Block(0, n_rows, 0, n_tokens, mask, is_causal=False),))

    monkeypatch.setattr(stack, "sight_of", bottom_right)
    before, _ = changes(llama)
    assert before.max() > 1e-3
