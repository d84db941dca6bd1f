"""Chunks that stay coded until they are written into a cache, as on a GPU; here the references do what its kernels do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvkernels import backend
from kvstore.core.blob import parse_header
from kvstore.core.errors import FormatError
from kvstore.core.identity import LayerGroup, RopeSpec
from kvstore.core.key import Kind
from kvworker.answer.policy import parse_policy
from kvworker.chunk import KVChunk
from kvworker.codec.coded import CodedChunk
from kvworker.codec.decode import ChunkDecoder
from kvworker.codec.pipeline import Pipeline
from kvworker.codec.specs import find_codec
from kvworker.engine.engine import CodedKV, Segment, spans_of
from kvworker.engine.overlay import Overlay
from kvworker.engine.rope import RotaryTable
from kvworker.engine.splice import place_group, stored_runs
from tests.contracts.codecs import decode, encode, identity_for, make_passage, parts_of, ready
from tests.engine.prompts import load_tiny, random_passages, random_question

CODECS = (
    "int8",
    "fp8",
    "kivi:bits=4,group=8",
    "kivi:bits=2,group=8",
    "int8+zstd:fields=codes",
    "sinks:n=4+kivi:bits=4,group=8",
    "sinks:n=9+int8",
    "pca:ratio=2",
    "sinks:n=2+pca:ratio=3",
)


class Held:
    """A source that has everything."""

    def __init__(self, chunks: Sequence[KVChunk | CodedKV]) -> None:
        self._chunks = chunks

    def group(self, index: int) -> KVChunk | CodedKV:
        """Return the chunk of a layer group."""
        return self._chunks[index]


@pytest.fixture
def _fusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loader and the engine take the CPU for a device that decodes, rotates and writes in one pass."""
    for place in ("kvworker.engine.splice.fuses", "kvworker.codec.decode.fuses"):
        monkeypatch.setattr(place, lambda device: True)


def arrived(blob: bytearray, codec: Pipeline | None = None) -> list[KVChunk | CodedChunk]:
    """Return what a loader has of a blob."""
    decoder = ChunkDecoder(parse_header(blob).manifest, codec)
    return [decoder.part_to_place(index, part) for index, part in enumerate(parts_of(blob))]


@pytest.mark.usefixtures("_fusing")
@pytest.mark.parametrize("codec", CODECS)
def test_a_chunk_stays_coded_and_can_be_decoded(codec: str) -> None:
    """Whoever keeps it decoded, as the device tier does, gets what is decoded elsewhere."""
    identity = identity_for((2, 2, 16, 24), (1, 1, 8, 8))
    pipeline = ready(codec, identity)
    blob = encode(pipeline, identity, make_passage(identity, 9))
    for chunk, expected in zip(arrived(blob, pipeline), decode(pipeline, blob), strict=True):
        assert isinstance(chunk, CodedChunk)
        assert chunk.spec.shape == expected.spec
        assert torch.equal(chunk.decoded.k, expected.k)
        assert torch.equal(chunk.decoded.v, expected.v)


@pytest.mark.usefixtures("_fusing")
@pytest.mark.parametrize("codec", ["raw", "kivi:bits=3,group=8", "think+int8", "turboquant", "cross+pca:over=model"])
def test_other_codecs_are_decoded_as_they_arrive(codec: str) -> None:
    """There is no kernel that writes them into a cache."""
    identity = identity_for((2, 2, 16, 24))
    pipeline = ready(codec, identity)
    assert isinstance(arrived(encode(pipeline, identity, make_passage(identity, 9)), pipeline)[0], KVChunk)


@pytest.mark.usefixtures("_fusing")
def test_tables_that_do_not_fit_are_found_before_anything_is_written() -> None:
    """Widths of another model: an engine could only stop half-way."""
    identity = identity_for((2, 2, 16, 24))
    pipeline = ready("pca:ratio=16", identity)
    wider = Pipeline((pipeline.quantizer.bound(ready("pca:ratio=2", identity).quantizer._by_layer),))  # type: ignore[attr-defined]
    with pytest.raises(FormatError, match=r"do not fit into 8 B a token"):
        arrived(encode(pipeline, identity, make_passage(identity, 9)), wider)


def test_on_the_cpu_everything_is_decoded_as_it_arrives() -> None:
    """Loaders have threads for it, beside the engine's."""
    assert not backend.fuses("cpu")
    identity = identity_for((2, 2, 16, 24))
    assert isinstance(arrived(encode(find_codec("int8"), identity, make_passage(identity, 9)))[0], KVChunk)


@pytest.mark.usefixtures("_fusing")
def test_what_rows_need_goes_with_a_coded_chunk() -> None:
    identity = identity_for((2, 2, 16, 24))
    (chunk,) = make_passage(identity, 9)
    (back,) = arrived(encode(find_codec("int8"), identity, (replace(chunk, need=torch.ones(9).half()),)))
    assert back.need is not None
    assert isinstance(back, CodedChunk)
    assert back.decoded.need is not None


@pytest.mark.parametrize("codec", ["raw", *CODECS])
@pytest.mark.parametrize("first", [0, 1])
def test_rows_are_written_as_if_decoded_and_rotated_apart(codec: str, first: int, request: pytest.FixtureRequest) -> None:
    """Three passages, the second one's middle computed; only their own rows and layers from `first` on are touched."""
    identity, group = identity_for((2, 2, 16, 24)), LayerGroup((0, 1), 2, 16, 24, RopeSpec("default", 1e4, 12))
    pipeline = ready(codec, identity)
    blobs = [encode(pipeline, identity, make_passage(identity, n, seed=n)) for n in (9, 7, 12)]
    table = RotaryTable(group.rope or RopeSpec("default", 1e4, 12), torch.float32, torch.device("cpu"))
    found = []
    for _ in range(2):  # apart, then in one pass
        segments = [Segment(tuple(range(c[0].spec.n_tokens)), Held(c)) for c in (arrived(blob, pipeline) for blob in blobs)]
        overlay = Overlay(replace(identity.layout, groups=(group,)), 40, torch.float32, torch.device("cpu"))
        for x in overlay.group(0):
            x.fill_(torch.nan)
        runs = stored_runs([*segments, Segment((1, 2))], [28, 29], computed=[11, 12, 14])
        place_group(overlay, 0, group, runs, lambda rows: table.angles(rows, 40), first)
        found.append(overlay.group(0))
        request.getfixturevalue("_fusing")
    assert spans_of(segments)[-1].stop == 28
    for apart, at_once in zip(*found, strict=True):
        assert torch.equal(apart.isnan(), at_once.isnan())
        assert apart[:first].isnan().all()
        torch.testing.assert_close(at_once, apart, rtol=1e-6, atol=1e-5, equal_nan=True)  # values up to 100, a few roundings of 2**-24


@pytest.mark.parametrize("policy", ["none", "first_k:k=3"])
def test_a_prompt_over_coded_chunks_is_answered_alike(policy: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Steps and policies as ever, on a library model."""
    tiny = load_tiny("llama", tmp_path)
    passages, codec, identity = random_passages((5, 16, 9)), find_codec("int8"), tiny.engine.identity
    blobs = [codec.encode(tiny.engine.export([p])[0], identity, Kind.ALONE, b"\7" * 32) for p in passages]
    logits = []
    for _ in range(2):  # decoded, then coded
        segments = [*(Segment(tuple(p), Held(arrived(b))) for p, b in zip(passages, blobs, strict=True)), Segment(tuple(random_question()))]
        logits.append(tiny.engine.prefill(segments, parse_policy(policy).select(segments)).first_logits)
        request.getfixturevalue("_fusing")
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-4)
