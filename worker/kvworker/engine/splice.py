"""Puts stored passages into a request's cache: all passages of a layer group are rotated and placed together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from kvstore.core.errors import IdentityError
from kvstore.core.identity import LayerGroup
from kvworker.chunk import KVChunk
from kvworker.engine.engine import ChunkSource, Segment, spans_of
from kvworker.engine.overlay import Overlay
from kvworker.engine.rope import RotaryTable, rotate


@dataclass(frozen=True)
class Run:
    """Stored segments that lie next to each other: segment i takes rows borders[i] to borders[i + 1] - 1."""

    sources: tuple[ChunkSource, ...]
    borders: tuple[int, ...]


def stored_runs(segments: Sequence[Segment], rows: Sequence[int]) -> list[Run]:
    """Return the segments of which at least one row is not in `rows` (ascending), gathered into runs."""
    runs: list[Run] = []
    for segment, span in zip(segments, spans_of(segments), strict=True):
        n_computed = bisect_left(rows, span.stop) - bisect_left(rows, span.start)
        if segment.source is None or n_computed == span.stop - span.start:
            continue
        if runs and runs[-1].borders[-1] == span.start:
            runs[-1] = Run((*runs[-1].sources, segment.source), (*runs[-1].borders, span.stop))
        else:
            runs.append(Run((segment.source,), (span.start, span.stop)))
    return runs


def place_group(overlay: Overlay, index: int, group: LayerGroup, runs: Sequence[Run], table: RotaryTable) -> None:
    """Ask the sources of all runs for layer group `index`, rotate K to where each passage lies, and write K and V to the overlay."""
    keys, values = overlay.group(index)
    for run in runs:
        start, stop = run.borders[0], run.borders[-1]
        chunks = [source.group(index) for source in run.sources]
        for chunk, (first, behind) in zip(chunks, pairwise(run.borders), strict=True):
            _check(chunk, group, behind - first, keys.dtype)
        k = torch.cat([chunk.k for chunk in chunks], 2)
        cos, sin = table.first(stop)
        rotate(k, cos[start:], sin[start:], out=keys[:, :, start:stop])
        torch.cat([chunk.v for chunk in chunks], 2, out=values[:, :, start:stop])


def _check(chunk: KVChunk, group: LayerGroup, n_tokens: int, dtype: torch.dtype) -> None:
    """Raise IdentityError unless the chunk has the group's geometry, the segment's length and the model's dtype."""
    expected = (len(group.layers), group.kv_heads, n_tokens, group.k_dim)
    if chunk.k.shape != expected or chunk.v.shape[-1] != group.v_dim or chunk.k.dtype != dtype:
        raise IdentityError(
            f"a stored chunk has K {tuple(chunk.k.shape)} {chunk.k.dtype}, the model needs {expected} {dtype}; compute this passage again"
        )
