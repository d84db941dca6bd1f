"""The codecs that the contract suite runs over, and the model, passages and artifacts that it runs them with.

Every preset, quantizer and transform is a case by itself. A file `codec_cases/<method>.py` with `CASES` says more of a method: other
parameters, the bytes of its fields and the bound of its error.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kvstore.core.blob import parse_header, verify_blob
from kvstore.core.discovery import known_names
from kvstore.core.identity import KVLayout, LayerGroup, ModelIdentity
from kvstore.core.key import Kind
from kvworker.calibrate.collect import N_SKIPPED, Collector
from kvworker.calibrate.fit import complete
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk, PassageKV
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.decode import decode_chunk
from kvworker.codec.pipeline import Pipeline
from kvworker.codec.registry import QUANTIZERS, TRANSFORMS
from kvworker.codec.specs import PRESETS, find_codec
from kvworker.engine.engine import Study

FOLDER = Path(__file__).parent / "codec_cases"

UNIT_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Half the distance of 1.0 to the next value of the type."""

Bound = Callable[[torch.Tensor, int, str], torch.Tensor]
"""Most that each element of K (axis -2) or V (axis -1) may be off, from the values, the axis and the dtype; without casts."""

Sizes = Callable[[ChunkSpec], Sequence[int]]
"""Bytes of each field of a part, in stored order."""


@dataclass(frozen=True)
class Case:
    """One codec and what is known of it."""

    codec: str
    sizes: Sizes | None = None
    bound: Bound | None = None

    def __str__(self) -> str:
        return self.codec


def cases() -> list[Case]:
    """Return all cases: those of the files, then what no file names."""
    told: list[Case] = [case for path in sorted(FOLDER.glob("*.py")) for case in runpy.run_path(str(path))["CASES"]]
    found = [
        *PRESETS,
        *known_names(QUANTIZERS),
        *(f"{transform}+{rest}" for transform in known_names(TRANSFORMS) for rest in ("raw", "int8")),
    ]
    known = {find_codec(case.codec) for case in told}
    others = {find_codec(codec): codec for codec in reversed(found)}
    return told + [Case(codec) for pipeline, codec in reversed(others.items()) if pipeline not in known]


def identity_for(*shapes: tuple[int, int, int, int], dtype: str = "float32", first: int = 0) -> ModelIdentity:
    """Return a model with groups of (layers, heads, k_dim, v_dim), whose layers are numbered from `first`."""
    groups = []
    for n_layers, kv_heads, k_dim, v_dim in shapes:
        groups.append(LayerGroup(tuple(range(first, first + n_layers)), kv_heads, k_dim, v_dim, None))
        first += n_layers
    return ModelIdentity("m", "0" * 64, KVLayout(tuple(groups)), dtype, "1" * 64)


def make_passage(identity: ModelIdentity, n_tokens: int, seed: int = 0) -> PassageKV:
    """Return normal values with one large key channel and one constant one, as real keys have."""
    rng = torch.Generator().manual_seed(seed)
    chunks = []
    for group in identity.layout.groups:
        rows = (len(group.layers), group.kv_heads, n_tokens)
        k, v = (torch.randn(*rows, dim, generator=rng) for dim in (group.k_dim, group.v_dim))
        k[..., 0] *= 30
        k[..., -1] = 0.25
        chunks.append(KVChunk(k.to(DTYPES[identity.dtype]), v.to(DTYPES[identity.dtype])))
    return tuple(chunks)


def ready(codec: str, identity: ModelIdentity) -> Pipeline:
    """Return a codec, calibrated on random passages of the model where it has to be."""
    pipeline = find_codec(codec)
    if not pipeline.traits.needs_artifact:
        return pipeline
    collector, n_tokens = Collector(identity), 150 + N_SKIPPED
    rng = torch.Generator().manual_seed(7)
    layers = [(layer, group) for group in identity.layout.groups for layer in group.layers]
    q_square = {layer: 0.1 + torch.rand(group.kv_heads, group.k_dim, generator=rng) for layer, group in layers}
    mass, mass_square = ({layer: torch.rand(n_tokens, generator=rng) for layer, _ in layers} for _ in range(2))
    collector.add(Study(make_passage(identity, n_tokens, seed=99), q_square, mass, mass_square))
    return complete(pipeline, Artifacts(identity.namespace), collector.statistics())


def encode(codec: Pipeline, identity: ModelIdentity, passage: PassageKV) -> bytearray:
    """Return the blob of a passage under some content key."""
    return codec.encode(passage, identity, Kind.ALONE, b"\7" * 32)


def parts_of(blob: bytearray) -> list[memoryview]:
    """Return the bytes of every part."""
    return [memoryview(blob)[p.offset : p.offset + p.nbytes] for p in verify_blob(blob).manifest.parts]


def decode(codec: Pipeline, blob: bytearray) -> PassageKV:
    """Return every part of a blob, decoded."""
    return decode_chunk(parse_header(blob).manifest, parts_of(blob), codec)


def bits_of(passage: PassageKV) -> list[bytes]:
    """Return the bytes of every tensor."""
    return [x.contiguous().view(torch.uint8).numpy().tobytes() for chunk in passage for x in (chunk.k, chunk.v)]
