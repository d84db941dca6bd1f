"""`larder size`: how many bytes the KV of passages takes, by codec and tier, without loading a model's weights."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvclient.cli import exits
from kvclient.cli.output import Number, output_of
from kvstore.core.blob import verify_blob
from kvstore.core.errors import InvalidInputError
from kvstore.core.identity import KVLayout, ModelIdentity
from kvstore.core.key import Kind
from kvstore.core.units import format_count, format_nbytes
from kvstore.store.record import RecordMeta
from kvworker.chunk import DTYPES, KVChunk, PassageKV
from kvworker.codec.pipeline import Pipeline, expected_specs
from kvworker.codec.presets import LADDER
from kvworker.codec.specs import PRESETS, find_codec

SAMPLE_TOKENS = 128
"""A longer passage is sized by samples of this many tokens and of half as many: what a codec keeps once per passage is not multiplied."""
TOKEN_ID_NBYTES = 4
_NO_DIGEST = "0" * 64

COLUMNS: Mapping[str, Callable[[Any], object]] = {
    "codec": lambda r: r["codec"],
    "a token": lambda r: Number(format_nbytes(r["nbytes_per_token"])),
    "a passage": lambda r: Number(format_nbytes(r["nbytes_per_passage"])),
    "memory, disk or Redis": lambda r: Number(format_nbytes(r["tiers"]["memory"])),
    "device": lambda r: Number(format_nbytes(r["tiers"]["device"])),
    "of raw": lambda r: Number(f"{r['share_of_raw']:.3f}"),
    "": lambda r: "estimate" if r["is_estimate"] else "",
}


@dataclass(frozen=True)
class Passages:
    """How many passages there are, and how many tokens each has: both at least 1."""

    n_passages: int
    n_tokens: int

    def __post_init__(self) -> None:
        if min(self.n_passages, self.n_tokens) < 1:
            raise InvalidInputError(f"sizes need at least 1 passage of 1 token, got {self.n_passages} of {self.n_tokens}")


def run(args: argparse.Namespace) -> int:
    """Print one row per codec."""
    from kvworker.engine.engine_hf import read_layout
    from kvworker.reference import MODEL_FOLDER

    output, passages = output_of(args), Passages(args.passages, args.tokens)
    directory = Path(args.model).expanduser() if args.model else MODEL_FOLDER
    layout, dtype = read_layout(directory, args.dtype)
    codecs = [args.codec] if args.codec else [name for name in PRESETS if not find_codec(name).traits.needs_artifact]
    sizes = [size(layout, dtype, passages, codec) for codec in codecs]
    shape = f"{format_count(args.passages, 'passage')} of {format_count(args.tokens, 'token')}"
    output.text(f"{directory.resolve().name}: {shape}, {layout.n_layers} layers, {dtype}\n")
    output.rows([{"model": directory.resolve().name, "dtype": dtype, **row} for row in sizes], COLUMNS)
    catalog = format_nbytes(TOKEN_ID_NBYTES * args.passages * args.tokens)
    output.text(f"\nEach tier of the store that keeps all passages needs this. A worker's catalog keeps {catalog} of token ids beside it.")
    return exits.OK


def size(layout: KVLayout, dtype: str, passages: Passages, codec: str) -> dict[str, Any]:
    """Return what passages take with one codec, in bytes.

    `tiers` are bytes of all passages: a record, which is a chunk with its envelope, is the same in every tier of the store; `device` holds
    decoded chunks. `is_estimate` says that the size depends on the values, here those of a normal distribution: a byte stage packs, or a
    preset has another form in a model that was calibrated and falls back for passages that would lose too much. Raises InvalidInputError
    for a codec that needs a calibration, and what `find_codec` raises.
    """
    pipeline = find_codec(codec)
    if pipeline.traits.needs_artifact:
        raise InvalidInputError(f"codec {codec} is sized by what a calibration finds; run `larder calibrate` and read its report")
    record = record_nbytes(layout, dtype, passages.n_tokens, pipeline)
    identity = _identity(layout, dtype)
    decoded = sum(spec.nbytes for spec in expected_specs(identity, passages.n_tokens))
    stored = record * passages.n_passages
    return {
        "codec": codec,
        "n_passages": passages.n_passages,
        "n_tokens": passages.n_tokens,
        "nbytes_per_token": record / passages.n_tokens,
        "nbytes_per_passage": record,
        "tiers": {"memory": stored, "disk": stored, "redis": stored, "device": decoded * passages.n_passages},
        "share_of_raw": record / decoded,
        "is_estimate": bool(pipeline.byte_stages) or codec in (preset.name for preset in LADDER[1:]),
    }


def record_nbytes(layout: KVLayout, dtype: str, n_tokens: int, pipeline: Pipeline) -> int:
    """Return the bytes of the record of one passage: on a straight line beyond SAMPLE_TOKENS tokens.

    Up to there it is exact if no byte stage packs, but for a document whose long name takes another 64 B or more.
    """
    identity = _identity(layout, dtype)

    def encoded(n_tokens: int) -> int:
        blob = pipeline.encode(_normal_passage(identity, n_tokens), identity, Kind.DOCUMENT, bytes(32))
        return RecordMeta.of(verify_blob(memoryview(blob)).manifest).blob_offset + len(blob)

    if n_tokens <= SAMPLE_TOKENS:
        return encoded(n_tokens)
    whole, half = encoded(SAMPLE_TOKENS), encoded(SAMPLE_TOKENS // 2)
    return whole + math.ceil((n_tokens - SAMPLE_TOKENS) * (whole - half) / (SAMPLE_TOKENS // 2))


def _normal_passage(identity: ModelIdentity, n_tokens: int) -> PassageKV:
    """Return a passage of normally distributed values."""
    random, dtype = torch.Generator().manual_seed(0), DTYPES[identity.dtype]

    def draw(layers: int, heads: int, dim: int) -> torch.Tensor:
        return torch.randn(layers, heads, n_tokens, dim, generator=random).to(dtype)

    return tuple(KVChunk(*(draw(len(g.layers), g.kv_heads, dim) for dim in (g.k_dim, g.v_dim))) for g in identity.layout.groups)


def _identity(layout: KVLayout, dtype: str) -> ModelIdentity:
    """Return the identity of a model of which only the geometry matters."""
    return ModelIdentity("size", _NO_DIGEST, layout, dtype, _NO_DIGEST)
