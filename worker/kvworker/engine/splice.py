"""Puts stored passages into a request's cache: all passages of a layer group are rotated and placed together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from kvkernels import rotate_scatter
from kvkernels.backend import fuses
from kvstore.core.errors import IdentityError
from kvstore.core.identity import LayerGroup
from kvworker.chunk import ChunkSpec, KVChunk
from kvworker.engine.engine import ChunkSource, CodedKV, Segment, Span, spans_of
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
    place = _place_on_gpu if fuses(keys.device) else _place_run
    chunks: dict[int, KVChunk | CodedKV] = {}
    for run in runs:
        for piece in run:
            if piece.segment not in chunks:
                chunks[piece.segment] = piece.source.group(index)
                _check(chunks[piece.segment].spec, group, piece.span.stop - piece.span.start, keys.dtype)
        place(run, chunks, keys, values, angles)


def _place_run(
    run: Run, chunks: Mapping[int, KVChunk | CodedKV], keys: torch.Tensor, values: torch.Tensor, angles: Angles
) -> None:  # fmt: skip
    """Put the pieces of a run together, rotate them at once, and write them to keys and values (L, H, N, D), a group's last layers."""
    start, stop = run[0].start, run[-1].stop
    k, v = zip(*(_rows(chunks[piece.segment], piece, len(keys)) for piece in run), strict=True)
    rotate(torch.cat(k, 2), *angles(slice(start, stop)), out=keys[:, :, start:stop])
    torch.cat(v, 2, out=values[:, :, start:stop])


def _place_on_gpu(
    run: Run, chunks: Mapping[int, KVChunk | CodedKV], keys: torch.Tensor, values: torch.Tensor, angles: Angles
) -> None:  # fmt: skip
    """Write each piece of a run in one launch for K and one for V, decoded on the way where its chunk is still coded."""
    for piece in run:
        chunk = chunks[piece.segment]
        if isinstance(chunk, KVChunk):
            k, v = _rows(chunk, piece, len(keys))
            rows = torch.arange(piece.start, piece.stop, device=keys.device)
            rotate_scatter.write(k.flatten(0, 1), *_turn(angles, slice(piece.start, piece.stop)), rows, keys.view(-1, *keys.shape[2:]))
            values[:, :, piece.start : piece.stop] = v
        else:
            rows = torch.full((chunk.spec.n_tokens,), -1, device=keys.device)
            own = slice(piece.start - piece.span.start, piece.stop - piece.span.start)
            rows[own] = torch.arange(piece.start, piece.stop, device=keys.device)
            chunk.write(_turn(angles, slice(piece.span.start, piece.span.stop)), rows, keys, values)


def _turn(angles: Angles, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin of rows as kernels take them: float32 (S, rotary_dim)."""
    cos, sin = (torch.cat((x, x), -1).float() for x in angles(rows))
    return cos, sin


def _rows(chunk: KVChunk | CodedKV, piece: Piece, n_layers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a piece's K and V of the group's last layers; only GPUs get coded chunks."""
    assert isinstance(chunk, KVChunk)
    own, layers = slice(piece.start - piece.span.start, piece.stop - piece.span.start), slice(len(chunk.k) - n_layers, None)
    return chunk.k[layers, :, own], chunk.v[layers, :, own]


def _check(spec: ChunkSpec, group: LayerGroup, n_tokens: int, dtype: torch.dtype) -> None:
    """Raise IdentityError unless a chunk has the group's geometry, the segment's length and the model's dtype."""
    own = (spec.n_layers, spec.kv_heads, spec.n_tokens, spec.k_dim, spec.v_dim, spec.dtype)
    expected = (len(group.layers), group.kv_heads, n_tokens, group.k_dim, group.v_dim, str(dtype).removeprefix("torch."))
    if own != expected:
        raise IdentityError(f"a stored chunk has layers, heads, tokens, sizes of K and V, and type {own}; the model needs {expected}")
