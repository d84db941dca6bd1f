"""Puts stored passages into a request's cache: all passages of a layer group are rotated and placed together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from kvstore.core.errors import IdentityError
from kvstore.core.identity import LayerGroup
from kvworker.chunk import KVChunk
from kvworker.engine.engine import ChunkSource, Segment, Span, spans_of
from kvworker.engine.overlay import Overlay
from kvworker.engine.rope import Rows, rotate


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop - 1` of a prompt, which `source` holds from its row `start - span.start` on."""

    segment: int
    source: ChunkSource
    span: Span
    start: int
    stop: int


Run = tuple[Piece, ...]
"""Pieces that lie next to each other."""


Angles = Callable[[Rows], tuple[torch.Tensor, torch.Tensor]]
"""Returns cos and sin, (S, rotary_dim / 2) each, of rows of a prompt."""


def stored_runs(segments: Sequence[Segment], rows: Sequence[int], computed: Sequence[int] = (), placed: Collection[int] = ()) -> list[Run]:
    """Return what a step that computes `rows` needs of the stored segments, gathered into runs.

    A segment is needed if one of its rows up to the last of `rows` is neither among them nor in `computed` (both ascending), and then all
    its rows but those in `computed` are. Segments in `placed`, by index, are in the cache already.
    """
    runs: list[Run] = []
    for index, (segment, span) in enumerate(zip(segments, spans_of(segments), strict=True)):
        source = segment.source
        if source is None or index in placed or span.start > rows[-1]:
            continue
        n_seen = min(span.stop, rows[-1] + 1) - span.start
        if _count(rows, span) + _count(computed, span) >= n_seen:
            continue
        for start, stop in _gaps(span, computed):
            piece = Piece(index, source, span, start, stop)
            if runs and runs[-1][-1].stop == start:
                runs[-1] = (*runs[-1], piece)
            else:
                runs.append((piece,))
    return runs


def _count(rows: Sequence[int], span: Span) -> int:
    """Return how many of ascending rows lie in a span."""
    return bisect_left(rows, span.stop) - bisect_left(rows, span.start)


def _gaps(span: Span, computed: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the stretches of a span between computed rows, as start and stop."""
    start = span.start
    for row in computed[bisect_left(computed, span.start) : bisect_left(computed, span.stop)]:
        if row > start:
            yield start, row
        start = row + 1
    if start < span.stop:
        yield start, span.stop


def place_group(overlay: Overlay, index: int, group: LayerGroup, runs: Sequence[Run], angles: Angles, first: int = 0) -> None:
    """Ask the sources of all runs for layer group `index`, rotate K to where each passage lies, and write K and V to the overlay.

    Layers before the group's layer `first` stay as they are.
    """
    keys, values = (x[first:] for x in overlay.group(index))
    chunks: dict[int, KVChunk] = {}
    for run in runs:
        for piece in run:
            if piece.segment not in chunks:
                chunks[piece.segment] = piece.source.group(index)
                _check(chunks[piece.segment], group, piece.span.stop - piece.span.start, keys.dtype)
        start, stop = run[0].start, run[-1].stop
        k, v = zip(*(_rows(chunks[piece.segment], piece, first) for piece in run), strict=True)
        rotate(torch.cat(k, 2), *angles(slice(start, stop)), out=keys[:, :, start:stop])
        torch.cat(v, 2, out=values[:, :, start:stop])


def _rows(chunk: KVChunk, piece: Piece, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a piece's K and V from a group's layer `first` on."""
    own = slice(piece.start - piece.span.start, piece.stop - piece.span.start)
    return chunk.k[first:, :, own], chunk.v[first:, :, own]


def _check(chunk: KVChunk, group: LayerGroup, n_tokens: int, dtype: torch.dtype) -> None:
    """Raise IdentityError unless the chunk has the group's geometry, the segment's length and the model's dtype."""
    expected = (len(group.layers), group.kv_heads, n_tokens, group.k_dim)
    if chunk.k.shape != expected or chunk.v.shape[-1] != group.v_dim or chunk.k.dtype != dtype:
        raise IdentityError(
            f"a stored chunk has K {tuple(chunk.k.shape)} {chunk.k.dtype}, the model needs {expected} {dtype}; compute this passage again"
        )
