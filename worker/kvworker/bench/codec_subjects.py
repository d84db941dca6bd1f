"""What the codec benchmark compares: our codecs, and other libraries' quantizers of caches where those are installed."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import torch

from kvstore.core.blob import BufferedBlob
from kvstore.core.identity import ModelIdentity, RopeSpec
from kvstore.core.key import Kind
from kvworker.chunk import DTYPES, KVChunk, PassageKV
from kvworker.codec.decode import decode_chunk
from kvworker.codec.pipeline import Pipeline
from kvworker.engine.rope import placed, unplaced

_logger = logging.getLogger(__name__)

_CONTENT = b"\0" * 32  # nobody looks these blobs up
PEER_GROUPS = (64, 32, 128)
"""Values that share a scale in transformers' quantized cache: the default, and what gives peers the bits of others."""


class Subject(Protocol):
    """Something that makes KV small."""

    @property
    def name(self) -> str:
        """What its rows are called."""
        ...

    def encode(self, kv: PassageKV) -> Encoded:
        """Return a passage's KV as it would be kept."""
        ...


@dataclass(frozen=True)
class Encoded:
    """KV as it is kept: its bytes, everything counted that differs between passages, and what brings it back."""

    nbytes: int
    decode: Callable[[], PassageKV]


@dataclass(frozen=True)
class OwnCodec:
    """One of our codecs, ready for use: whole blobs, verified and decoded as from a store."""

    name: str
    pipeline: Pipeline
    identity: ModelIdentity

    def encode(self, kv: PassageKV) -> Encoded:
        """Return the blob."""
        blob = self.pipeline.encode(kv, self.identity, Kind.ALONE, _CONTENT)

        def decode() -> PassageKV:
            reader = BufferedBlob(blob, "")
            return decode_chunk(reader.manifest, map(reader.part, range(len(kv))), self.pipeline)

        return Encoded(len(blob), decode)


Squeeze = Callable[[torch.Tensor], tuple[int, Callable[[], torch.Tensor]]]
"""Quantizes a layer's K or V (1, H, T, D); returns the bytes that it keeps, and what brings the tensor back."""


@dataclass(frozen=True)
class Peer:
    """A quantizer of transformers' `QuantizedCache`, called as the cache calls it: K and V layer by layer, K after RoPE, whole prompts."""

    name: str
    squeeze_k: Squeeze
    squeeze_v: Squeeze
    identity: ModelIdentity

    def encode(self, kv: PassageKV) -> Encoded:
        """Return the quantized layers."""
        found = []
        for chunk, group in zip(kv, self.identity.layout.groups, strict=True):
            k = placed(chunk.k, group.rope, 0).to(chunk.k.dtype)
            layers = [(self.squeeze_k(k[n : n + 1]), self.squeeze_v(chunk.v[n : n + 1])) for n in range(len(k))]
            found.append((group.rope, layers))
        dtype = DTYPES[self.identity.dtype]
        nbytes = sum(side[0] for _, layers in found for layer in layers for side in layer)
        return Encoded(nbytes, lambda: tuple(_restored(rope, layers, dtype) for rope, layers in found))


def _restored(rope: RopeSpec | None, layers: Sequence[tuple[Any, Any]], dtype: torch.dtype) -> KVChunk:
    """Return a group's chunk, with K before RoPE as everything here has it; in float32 on the way, so that nothing is lost twice."""
    k = torch.cat([k[1]() for k, _ in layers])
    v = torch.cat([v[1]() for _, v in layers])
    return KVChunk(unplaced(k, rope, 0).to(dtype), v.to(dtype))


def peers(identity: ModelIdentity) -> Iterator[Peer]:
    """Yield the peers that are installed: quanto, also with K by channel, and HQQ, at 4 and 2 bits, in groups of each size.

    One that is not installed has no rows, which a warning in the log says.
    """
    settings = list(product((4, 2), PEER_GROUPS))
    if importlib.util.find_spec("optimum") and importlib.util.find_spec("optimum.quanto"):
        for bits, group in settings:
            by_token, by_channel = _quanto(bits, 0, group), _quanto(bits, -1, group)
            yield Peer(_peer_name("quanto", bits, group), by_token, by_token, identity)
            yield Peer(_peer_name("quanto, K by channel,", bits, group), by_channel, by_token, identity)
    else:
        _logger.warning("quanto is not measured: pip install optimum-quanto")
    if importlib.util.find_spec("hqq"):
        for bits, group in settings:
            yield Peer(_peer_name("HQQ", bits, group), _hqq(bits, group), _hqq(bits, group), identity)
    else:
        _logger.warning("HQQ is not measured: pip install hqq")


def _peer_name(library: str, bits: int, group: int) -> str:
    """Return what the rows of a peer are called."""
    return f"transformers {library} {bits} bits, groups of {group}"


def _quanto(bits: int, axis: int, group: int) -> Squeeze:
    """Return what the cache's quanto backend does; by channel it refuses other than whole groups of tokens, so the last few stay raw."""
    quanto = importlib.import_module("optimum.quanto")
    qtype, optimizer = {4: quanto.qint4, 2: quanto.qint2}[bits], quanto.MaxOptimizer()

    def squeeze(x: torch.Tensor) -> tuple[int, Callable[[], torch.Tensor]]:
        n_raw = x.shape[2] % group if axis == -1 else 0
        x, rest = (part.contiguous() for part in torch.split(x, [x.shape[2] - n_raw, n_raw], 2))
        if not x.numel():
            return rest.nbytes, lambda: rest
        scale, shift = optimizer(x, qtype, axis, group)
        held = quanto.quantize_weight(x, qtype, axis, scale, shift, group)
        nbytes = x.numel() * bits // 8 + scale.nbytes + shift.nbytes + rest.nbytes
        return nbytes, lambda: torch.cat((held.dequantize(), rest), 2)

    return squeeze


def _hqq(bits: int, group: int) -> Squeeze:
    """Return what the cache's HQQ backend does; it keeps scales and zeros in the cache's dtype."""
    quantizer = importlib.import_module("hqq.core.quantize").Quantizer

    def squeeze(x: torch.Tensor) -> tuple[int, Callable[[], torch.Tensor]]:
        held, meta = quantizer.quantize(x, axis=0, device="cpu", compute_dtype=x.dtype, nbits=bits, group_size=group)
        meta |= {name: meta[name].to(x.dtype) for name in ("scale", "zero")}
        return held.nbytes + meta["scale"].nbytes + meta["zero"].nbytes, lambda: quantizer.dequantize(held, meta)

    return squeeze
