"""Chunks of calibrated codecs: both clients fetch the artifact that a chunk names, check it, and keep it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from kvclient.stored import KeptArtifacts, StoredArtifact, StoredPassage
from kvstore.core.blob import build_blob, parse_header
from kvstore.core.errors import CorruptError, NotFoundError
from kvstore.core.key import ChunkKey, Kind, content_key
from kvstore.core.manifest import FieldSpec, Manifest, PartSpec
from kvstore.core.stages import PipelineSpec, StageSpec
from kvworker.codec.artifact import Artifact
from tests.client.fake_server import NAMESPACE, FakeServer
from tests.client.twins import Twin

Connect = Callable[..., Twin]
SUBJECT = StageSpec("cq", (("bits", 1), ("couple", 4)))
TEXT = "Thornham stores marble"


def make_artifact(namespace: bytes = NAMESPACE) -> Artifact:
    """Return codebooks of two vectors for two layers with a head of four channels."""
    vectors = torch.arange(8, dtype=torch.float16).view(1, 1, 2, 4)
    return Artifact(namespace, SUBJECT, {layer: {"k.codebooks": vectors + 10 * layer, "v.codebooks": -vectors} for layer in (0, 1)})


@pytest.fixture
def passage_id(server: FakeServer) -> str:
    """Store a chunk of two layers and three tokens that is coded with the artifact, and the artifact; return the passage's id."""
    artifact, token_ids = make_artifact(), tuple(len(word) for word in TEXT.split())
    server.blobs[artifact.key] = bytes(artifact.to_bytes())
    ref, _ = server.add_passage("notes.txt", 0, TEXT)
    codec = PipelineSpec((StageSpec("cq", (("artifact", artifact.digest), *SUBJECT.params)),))
    server.codecs[ref.id] = codec
    fields = tuple(FieldSpec(f"{side}.codes", "uint8", (2, 1, 3, 1)) for side in "kv")
    manifest = Manifest(
        NAMESPACE,
        content_key(NAMESPACE, Kind.ALONE, token_ids),
        Kind.ALONE,
        b"",
        3,
        "float32",
        codec,
        (PartSpec(0, (0, 1), 1, 4, 4, fields),),
    )
    codes = bytes([0, 1, 0, 1, 1, 0])
    server.blobs[server.key_of(ref.id)] = bytes(build_blob(manifest, [[codes, codes]]))
    return str(ref.id)


def fetched(twin: Twin, passage_id: str) -> StoredPassage:
    """Return the one chunk of a passage."""
    [stored] = twin.do(twin.larder, "chunks", [passage_id])
    assert isinstance(stored, StoredPassage)
    return stored


def test_a_chunk_of_a_calibrated_codec_decodes_with_the_artifact_that_it_names(
    server: FakeServer, connect: Connect, passage_id: str
) -> None:
    """A RAG backend with an engine of its own has nothing but the store."""
    [(k, v)] = fetched(connect(server), passage_id).to_numpy()
    low, high = np.arange(4), np.arange(4, 8)
    np.testing.assert_array_equal(k[:, 0], [[low, high, low], [10 + high, 10 + high, 10 + low]])
    np.testing.assert_array_equal(v[:, 0], [[-low, -high, -low], [-high, -high, -low]])


def test_an_artifact_is_fetched_once(server: FakeServer, connect: Connect, passage_id: str) -> None:
    """Of a large model it is as large as many chunks."""
    twin = connect(server)
    for _ in range(3):
        fetched(twin, passage_id).to_numpy()
    assert server.calls["Get"] == 4


def test_a_chunk_whose_artifact_is_absent_is_handed_out_and_decoding_it_says_why(
    server: FakeServer, connect: Connect, passage_id: str
) -> None:
    """An engine of one's own may have the tables from elsewhere."""
    del server.blobs[make_artifact().key]
    stored = fetched(connect(server), passage_id)
    assert stored.blob is not None
    with pytest.raises(NotFoundError, match=r"artifact \w{16}, which the chunk is coded with, is not in the store \(never_stored\)"):
        stored.to_numpy()


def test_an_artifact_that_comes_later_is_found(server: FakeServer, connect: Connect, passage_id: str) -> None:
    """A miss is not kept."""
    twin, key = connect(server), make_artifact().key
    blob = server.blobs.pop(key)
    fetched(twin, passage_id)
    server.blobs[key] = blob
    assert len(fetched(twin, passage_id).to_numpy()) == 1


def test_an_artifact_with_one_wrong_bit_is_a_miss(server: FakeServer, connect: Connect, passage_id: str) -> None:
    """As a chunk is."""
    blob = bytearray(server.blobs[make_artifact().key])
    blob[-1] ^= 1
    server.blobs[make_artifact().key] = bytes(blob)
    with pytest.raises(NotFoundError, match="digest"):
        fetched(connect(server), passage_id).to_numpy()


def test_an_artifact_of_another_model_is_a_miss(server: FakeServer, connect: Connect, passage_id: str) -> None:
    """The store sent something else than was asked for."""
    server.blobs[make_artifact().key] = bytes(make_artifact(bytes(32)).to_bytes())
    with pytest.raises(NotFoundError, match="the store sent"):
        fetched(connect(server), passage_id).to_numpy()


def test_tables_that_bear_the_name_of_others_are_corrupt(server: FakeServer, connect: Connect, passage_id: str) -> None:
    """Whoever can store a blob can make its own digests match."""
    artifact = make_artifact()
    manifest = parse_header(artifact.to_bytes()).manifest
    zeros = [[bytes(field.nbytes) for field in part.fields] for part in manifest.parts]
    server.blobs[artifact.key] = bytes(build_blob(manifest, zeros))
    with pytest.raises(CorruptError, match="its tables have the digest"):
        fetched(connect(server), passage_id).to_numpy()


def test_a_chunk_that_claims_other_tokens_than_the_passage_has_is_a_miss(server: FakeServer, connect: Connect, passage_id: str) -> None:
    """The content key does not hold their number in the manifest."""
    key = server.key_of(passage_id)
    manifest = parse_header(server.blobs[key]).manifest
    part = replace(manifest.parts[0], fields=tuple(replace(f, shape=(2, 1, 2, 1)) for f in manifest.parts[0].fields))
    server.blobs[key] = bytes(build_blob(replace(manifest, n_tokens=2, parts=(part,)), [[bytes(4), bytes(4)]]))
    stored = fetched(connect(server), passage_id)
    assert (stored.blob, stored.reason.partition("claims")[2]) == (None, " 2 tokens, its passage has 3")


def test_eight_artifacts_are_kept_and_the_first_of_more_goes() -> None:
    """A client's memory does not grow with what it has read."""
    kept = KeptArtifacts()
    keys = [ChunkKey(NAMESPACE, bytes([n]) * 32, bytes(32)) for n in range(9)]
    for key in keys:
        kept.keep(StoredArtifact(key, b"blob"))
    assert [kept.find(key) is not None for key in keys] == [False] + 8 * [True]
