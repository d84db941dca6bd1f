"""Few levels per token, entropy coded with tables per channel that were calibrated: small on slow links, slow to decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from kvkernels import cachegen
from kvkernels.packing import packed_nbytes
from kvstore import rans
from kvstore.core.errors import FormatError, InvalidInputError
from kvstore.core.stages import Traits
from kvworker.calibrate.statistics import Statistics
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk
from kvworker.codec.stages import Calibrated, Fields, Layout, Quantizer, Tables
from kvworker.codec.streams import from_streams, to_streams
from kvworker.codec.tensor_bytes import bytes_of

_BINS = (8, 16, 32, 64)
_DELTAS = ("auto", "off", "on")
_FINE_LAYERS = {"k": 10 / 32, "v": 2 / 32}  # of the layers, as released for models of 32
_FEWEST_PAIRS = 16


class _Coded(NamedTuple):
    """A layer's tokens: symbols (T or T - A, C), scale (T,), and anchors (A, C) where differences are coded."""

    symbols: torch.Tensor
    scale: torch.Tensor
    anchors: torch.Tensor | None


@dataclass(frozen=True)
class Cachegen(Calibrated, Quantizer):
    """Round each token of a layer to bins - 1 levels and code them with rANS, each channel with its own table of how frequent they are.

    The first layers, which later ones build upon, have `fine` bins: 10 of 32 layers for K, 2 of 32 for V; the others have `coarse`. Where
    neighbouring tokens are alike a layer codes the difference to the first of ten tokens instead, which is kept in 8 bits: calibration
    decides, by what either takes. Tables are calibrated: counted on a chunk and sent with it, they would take 2 bits a value at 256 tokens.

    A field has one size, so streams are filled up with zeros to what plain codes would take, which is what a stream that would be longer
    is replaced by. Put `trim:fields=streams` behind it, which leaves the zeros out.

    Paper: CacheGen (SIGCOMM 2024, arXiv 2310.07240); bins as in the released code, here with K before RoPE, rANS in place of arithmetic
    coding, and tables that do not travel.

    Parameters
    ----------
    fine, coarse : int
        8, 16, 32 or 64 bins.
    delta : str
        "auto" codes differences where calibration finds them smaller, "off" nowhere, "on" everywhere.
    artifact : str
        Digest of the calibrated tables.
    """

    name: ClassVar[str] = "cachegen"
    traits: ClassVar[Traits] = Traits(is_tp_splittable=False)
    fitted: ClassVar[tuple[str, ...]] = ("coarse", "delta", "fine")
    fine: int = 32
    coarse: int = 16
    delta: str = "auto"
    artifact: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if {self.fine, self.coarse} - set(_BINS) or self.coarse > self.fine or self.delta not in _DELTAS:
            raise InvalidInputError(
                f"cachegen: {self.fine} and {self.coarse} bins, delta {self.delta}; choose bins in {_BINS}, coarse at most fine, "
                f"delta in {_DELTAS}"
            )

    def fit(self, statistics: Statistics) -> Mapping[int, Tables]:
        """Return, per layer, for k and for v: frequencies int32 (C, fine - 1), half and delta int32 (1,)."""
        n_layers, found = len(statistics.layers), {}
        for rank, (layer, own) in enumerate(sorted(statistics.layers.items())):
            found[layer] = {
                f"{side}.{name}": table
                for side, sample in (("k", own.k.sample), ("v", own.v.sample))
                for name, table in self._fit_side(
                    sample.transpose(0, 1).flatten(1), own.place, self._bins(rank < n_layers * _FINE_LAYERS[side])
                ).items()
            }
        return found

    def _bins(self, is_early: bool) -> int:
        return self.fine if is_early else self.coarse

    def _fit_side(self, x: torch.Tensor, place: torch.Tensor, bins: int) -> Tables:
        """Return the tables of a sample (N, C)."""
        half = bins // 2 - 1
        symbols, near, n_kinds = cachegen.symbols_of(x, half)[0], _within_a_run(place), self.fine - 1
        counts = _counts(symbols, n_kinds)
        is_delta = self.delta == "on" and bool((near >= 0).any())
        if self.delta == "auto" and int((near >= 0).sum()) >= _FEWEST_PAIRS:
            is_delta = _differences_pay(x, near, _bits(counts))
        if is_delta:
            rest = x[near >= 0] - x[near[near >= 0]]
            counts = _counts(cachegen.symbols_of(rest, half)[0], n_kinds)
        table = torch.from_numpy(rans.frequencies(counts.numpy()).astype(np.int32))
        return {"frequencies": table, "half": _whole(half), "delta": _whole(int(is_delta))}

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return, for k and for v: scale (L, T) in the chunk's dtype, anchors uint8 (layers with differences, runs, C) if there are such
        layers, nbytes int32 (L,) and streams uint8."""
        fields: dict[str, tuple[str, tuple[int, ...]]] = {}
        for side, n_channels in _widths(spec):
            modes = self._modes(side, spec.layers)
            n_delta = sum(is_delta for _, is_delta in modes)
            fields[f"{side}.scale"] = (spec.dtype, (spec.n_layers, spec.n_tokens))
            if n_delta:
                fields[f"{side}.anchors"] = ("uint8", (n_delta, _n_anchors(spec.n_tokens), n_channels))
            fields[f"{side}.nbytes"] = ("int32", (spec.n_layers,))
            fields[f"{side}.streams"] = ("uint8", (_room(modes, spec.n_tokens, n_channels),))
        return fields

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return scales, anchors and streams of k and of v; the entropy coder runs on the CPU."""
        fields: Fields = {}
        for (side, n_channels), x in zip(_widths(spec), (chunk.k, chunk.v), strict=True):
            modes = self._modes(side, spec.layers)
            coded = [_coded(own.transpose(0, 1).flatten(1), *mode) for own, mode in zip(x, modes, strict=True)]
            levels = [2 * half + 2 for half, _ in modes]
            streams = to_streams([own.symbols for own in coded], levels, self._frequencies(side, spec.layers))
            fields[f"{side}.scale"] = torch.stack([own.scale for own in coded])
            if any(is_delta for _, is_delta in modes):
                fields[f"{side}.anchors"] = torch.stack([own.anchors for own in coded if own.anchors is not None])
            fields[f"{side}.nbytes"] = torch.tensor([len(stream) for stream in streams], dtype=torch.int32)
            filled = bytearray(b"".join(streams).ljust(_room(modes, spec.n_tokens, n_channels), b"\0"))
            fields[f"{side}.streams"] = torch.frombuffer(filled, dtype=torch.uint8)
        return {name: field.to(chunk.k.device) for name, field in fields.items()}

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k and v in the model's dtype; raises FormatError for streams that are none."""
        k, v = (self._decode_side(fields, spec, side, n_channels) for side, n_channels in _widths(spec))
        return k, v

    def _decode_side(self, fields: Fields, spec: ChunkSpec, side: str, n_channels: int) -> torch.Tensor:
        """Return k or v."""
        modes, scale = self._modes(side, spec.layers), fields[f"{side}.scale"]
        n_rows, levels = [_n_coded(spec.n_tokens, is_delta) for _, is_delta in modes], [2 * half + 2 for half, _ in modes]
        streams = _cut(bytes_of(fields[f"{side}.streams"]), fields[f"{side}.nbytes"].tolist())
        symbols = from_streams(streams, n_rows, levels, self._frequencies(side, spec.layers))
        anchors = iter(fields.get(f"{side}.anchors", ()))
        out = torch.empty(spec.n_layers, spec.n_tokens, n_channels, dtype=DTYPES[spec.dtype], device=scale.device)
        for n, (half, is_delta) in enumerate(modes):
            own = symbols[n].to(scale.device)
            if is_delta:
                out[n] = cachegen.anchored_values_of(next(anchors), own, scale[n], half, out.dtype)
            else:
                out[n] = cachegen.values_of(own, scale[n], half, out.dtype)
        return torch.unflatten(out, 2, (spec.kv_heads, -1)).transpose(1, 2)

    def _modes(self, side: str, layers: Sequence[int]) -> list[tuple[int, bool]]:
        """Return half the levels, and whether differences are coded, of each layer."""
        halves, deltas = (self.table(f"{side}.{name}", layers)[:, 0].tolist() for name in ("half", "delta"))
        return [(half, bool(is_delta)) for half, is_delta in zip(halves, deltas, strict=True)]

    def _frequencies(self, side: str, layers: Sequence[int]) -> rans.Frequencies:
        """Return the tables (L, C, S) of the entropy coder."""
        return self.table(f"{side}.frequencies", layers).numpy().astype(np.uint16)


def _coded(x: torch.Tensor, half: int, is_delta: bool) -> _Coded:
    """Return a layer's x (T, C) as symbols."""
    if is_delta:
        anchors, symbols, scale = cachegen.anchored_symbols_of(x, half)
        return _Coded(symbols, scale, anchors)
    return _Coded(*cachegen.symbols_of(x, half), None)


def _cut(data: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    """Return the streams that lie behind each other; raises FormatError where they do not fit."""
    if min(lengths) < 0 or sum(lengths) > len(data):
        raise FormatError(f"cachegen: streams of {lengths} B do not lie within {len(data)} B")
    ends = [sum(lengths[: n + 1]) for n in range(len(lengths))]
    return [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _n_anchors(n_tokens: int) -> int:
    return -(-n_tokens // cachegen.RUN)


def _n_coded(n_tokens: int, is_delta: bool) -> int:
    """Return the tokens that are entropy coded."""
    return n_tokens - _n_anchors(n_tokens) if is_delta else n_tokens


def _room(modes: list[tuple[int, bool]], n_tokens: int, n_channels: int) -> int:
    """Return the most bytes that the streams of these layers take, and 1 in any case."""
    return max(1, sum(packed_nbytes(_n_coded(n_tokens, is_delta) * n_channels, 2 * half + 2) for half, is_delta in modes))


def _widths(spec: ChunkSpec) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return the sides and the channels of all heads."""
    return ("k", spec.kv_heads * spec.k_dim), ("v", spec.kv_heads * spec.v_dim)


def _within_a_run(place: torch.Tensor) -> torch.Tensor:
    """Return, for each sampled token (N,), the earliest one that may be the anchor of its run, or -1: 1 to 9 places before it."""
    earliest = torch.searchsorted(place, place - (cachegen.RUN - 1))
    return torch.where(earliest < torch.arange(len(place)), earliest, -1)


def _differences_pay(x: torch.Tensor, near: torch.Tensor, bits: float) -> bool:
    """Tell whether differences to an anchor take fewer bits at one step than x (N, C), of `bits` a value, the anchors' 8 bits included."""
    is_pair = near >= 0
    narrower = (x - x.mean(0)).square().mean() / (x[is_pair] - x[near[is_pair]]).square().mean().clamp(min=1e-30)
    others = (cachegen.RUN - 1) / cachegen.RUN
    return bool(others * torch.log2(narrower) / 2 > (1 - others) * (8 - bits))


def _counts(symbols: torch.Tensor, n_kinds: int) -> torch.Tensor:
    """Return how often each channel has each symbol, int64 (C, n_kinds)."""
    counts = torch.zeros(symbols.shape[1], n_kinds, dtype=torch.int64)
    return counts.scatter_add_(1, symbols.T.long(), torch.ones_like(symbols.T, dtype=torch.int64))


def _bits(counts: torch.Tensor) -> float:
    """Return the mean entropy of channels with these counts, in bits a symbol."""
    share = counts / counts.sum(1, keepdim=True)
    return float(-(share * torch.log2(share.clamp(min=1e-30))).sum(1).mean())


def _whole(n: int) -> torch.Tensor:
    return torch.tensor([n], dtype=torch.int32)
