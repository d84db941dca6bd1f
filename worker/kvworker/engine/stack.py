"""A model's decoder as a stack of layers that are run one by one over the rows of a pass.

All keys are rotated with angles from one float64 table, and attention sees key position <= row position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from kvstore.core.identity import KVLayout, LayerGroup, RopeSpec
from kvworker.engine.arrangement import IN_TURN, Arrangement
from kvworker.engine.attention import Observer, Sight, sight_of
from kvworker.engine.families import Family
from kvworker.engine.overlay import Overlay
from kvworker.engine.rope import RotaryTable, Rows, rotate


def positions_at(place: Rows, arrangement: Arrangement, device: torch.device) -> Rows:
    """Return where rows stand."""
    if arrangement.side_by_side is None:
        return place
    rows = range(place.start, place.stop) if isinstance(place, slice) else place.tolist()
    return torch.tensor([arrangement.position(row) for row in rows], device=device)


class Pass:
    """The rows that are under way: where they lie, and their hidden states (1, S, hidden).

    `place` says where the rows lie in the cache: a slice where they are consecutive, which is faster than indices. `length` is the whole
    sequence's, in rows. An `observer` is told in each layer what the last `n_observed` rows pay attention to.
    """

    def __init__(
        self,
        rows: Sequence[int],
        hidden: torch.Tensor,
        length: int,
        arrangement: Arrangement = IN_TURN,
        observer: Observer | None = None,
        n_observed: int = 0,
    ) -> None:
        self.hidden, self.n_positions = hidden, arrangement.n_positions(length)
        self._arrangement = arrangement
        self._observer, self._n_observed = observer, n_observed
        self._set(rows)

    def _set(self, rows: Sequence[int]) -> None:
        self.rows, self.n_tokens = rows, rows[-1] + 1
        own = torch.tensor(rows, device=self.hidden.device)
        is_consecutive = rows[-1] - rows[0] + 1 == len(rows)
        self.place: Rows = slice(rows[0], rows[-1] + 1) if is_consecutive else own
        self.turn = positions_at(self.place, self._arrangement, own.device)
        self.positions = own if isinstance(self.turn, slice) else self.turn
        self._sights: dict[int, Sight] = {}
        self._angles: dict[RopeSpec | None, tuple[torch.Tensor, torch.Tensor]] = {}

    def narrow(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows, ascending."""
        kept = set(rows)
        own = [i for i, row in enumerate(self.rows) if row in kept]
        self.hidden = self.hidden[:, torch.tensor(own, device=self.hidden.device)]
        self._set(rows)

    def sight(self, window: int) -> Sight:
        """Return what the rows see through a window; 0 sees all earlier keys."""
        if window not in self._sights:
            sight = sight_of(self.rows, window, self.hidden.dtype, self.hidden.device, self._arrangement)
            self._sights[window] = replace(sight, observer=self._observer, n_observed=self._n_observed)
        return self._sights[window]

    def angles(self, rope: RopeSpec | None, table: RotaryTable) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin (1, S, D) of the rows, as attention modules expect them."""
        if rope not in self._angles:
            cos, sin = table.angles(self.turn, self.n_positions)
            self._angles[rope] = torch.cat((cos,) * 2, -1)[None], torch.cat((sin,) * 2, -1)[None]
        return self._angles[rope]


class Stack:
    """The decoder layers of a library model, its embedding and its output layer.

    Parameters
    ----------
    decoder, head : modules
        In evaluation mode.
    softcap : float or None
        Bound of the logits.
    """

    def __init__(self, decoder: Any, head: Any, softcap: float | None, family: Family, layout: KVLayout, dtype: torch.dtype) -> None:
        self.layout, self.dtype, self.device = layout, dtype, head.weight.device
        self._decoder, self._head, self._softcap, self._family = decoder, head, softcap, family
        ropes = {group.rope for group in layout.groups if group.rope is not None}
        self._tables: dict[RopeSpec | None, RotaryTable] = {rope: RotaryTable(rope, dtype, self.device) for rope in ropes}

    def overlay(self, capacity: int) -> Overlay:
        """Return an empty cache for this many tokens."""
        return Overlay(self.layout, capacity, self.dtype, self.device)

    def table(self, group: LayerGroup) -> RotaryTable:
        """Return the rotary table of a group's keys."""
        return self._tables[group.rope]

    def embed(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return the hidden states (1, S, hidden) below the first layer."""
        hidden: torch.Tensor = self._decoder.embed_tokens(torch.tensor(token_ids, device=self.device)[None])
        return hidden

    def run(self, layer: int, group: LayerGroup, work: Pass, overlay: Overlay) -> None:
        """Take a pass through one layer; the rows' K and V are in the overlay then."""
        overlay.begin(work.place, work.n_tokens)
        work.hidden = self._decoder.layers[layer](
            work.hidden,
            attention_mask=work.sight(group.window),
            position_ids=work.positions[None],
            position_embeddings=work.angles(group.rope, self._tables[group.rope]),
            past_key_values=overlay,
            use_cache=True,
        )

    def run_all(self, work: Pass, overlay: Overlay) -> None:
        """Take a pass through every layer."""
        for group in self.layout.groups:
            for layer in group.layers:
                self.run(layer, group, work, overlay)

    def fresh(self, layer: int, group: LayerGroup, work: Pass) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K after RoPE and V, (H, S, D) each, that a pass's rows have in the layer which they enter next."""
        module = self._decoder.layers[layer]
        k, v = self._family.project(module.self_attn, module.input_layernorm(work.hidden), group.kv_heads)
        rotate(k, *self._tables[group.rope].angles(work.turn, work.n_positions), out=(rotated := torch.empty_like(k)))
        return rotated, v

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (V,) in float32 of the hidden state (hidden,) above the last layer."""
        logits: torch.Tensor = self._head(self._decoder.norm(hidden)).float()
        return logits if self._softcap is None else torch.tanh(logits / self._softcap) * self._softcap
