"""Bytes that were once released stay readable, and a reader written from FORMAT.md alone agrees with ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvclient.reader.artifact import read_artifact
from kvclient.reader.chunk import ChunkReader
from kvstore.codecs import find_byte_stage
from kvstore.core.blob import part_fields, verify_blob
from kvstore.core.identity import KVLayout, LayerGroup, ModelIdentity, RopeSpec
from kvstore.core.key import ChunkKey, Kind, chain_keys, content_key, storage_key, tenant_secret
from kvstore.core.manifest import FieldSpec
from kvstore.core.stages import PipelineSpec, StageSpec
from kvworker.codec.artifact import Artifact
from kvworker.codec.decode import decode_part
from tests.golden import make, second_reader
from tests.golden.second_packings import RefusedError

FOLDER = Path(__file__).parent
CHUNKS = sorted(FOLDER.glob("*.chunk"))
PACKED = {
    "cachegen": "trim",
    "deflate": "deflate",
    "lossless": "zstd",
    "lz4": "lz4",
    "planes": "planes",
    "rans": "rans",
    "top16": "top16",
}
"""How golden chunks are packed, by the first word of their names."""
OF_LIBRARIES = ("deflate", "lossless", "lz4", "planes")
"""Those whose frames may differ between versions of a library."""
SUMS = ("hadamard3", "hadamard4", "turboquant")
"""Those that decode by sums of products, whose order is anybody's."""
KEYS = json.loads((FOLDER / "keys.json").read_text("utf-8"))

EPSILON = {"float32": 0.0, "bfloat16": 2.0**-7, "float16": 2.0**-10}

all_chunks = pytest.mark.parametrize("path", CHUNKS, ids=lambda path: path.stem)


def expected_values(path: Path) -> np.ndarray:
    """Return the values recorded beside a chunk."""
    return np.fromfile(path.with_suffix(".values"), "<f4")


def flat(pairs: list[tuple[Any, Any]]) -> np.ndarray:
    """Return K and V of every part in one line of float32."""
    return np.concatenate([np.asarray(x, np.float32).ravel() for pair in pairs for x in pair])


def test_every_golden_chunk_of_the_script_is_there() -> None:
    assert [path.stem for path in CHUNKS] == sorted(golden.name for golden in make.CHUNKS)


@all_chunks
def test_the_worker_decodes_the_recorded_values(path: Path) -> None:
    found = make.decoded_values(path.read_bytes(), artifact_beside(path))
    np.testing.assert_array_equal(np.frombuffer(found, "<f4"), expected_values(path))


def artifact_beside(path: Path) -> Artifact | None:
    """Return the artifact of a golden chunk that has one."""
    tables = path.with_suffix(".artifact")
    return Artifact.from_bytes(tables.read_bytes()) if tables.exists() else None


@all_chunks
def test_the_numpy_reader_decodes_the_recorded_values(path: Path) -> None:
    blob, tables = path.read_bytes(), path.with_suffix(".artifact")
    artifacts = [read_artifact(tables.read_bytes())] if tables.exists() else []
    manifest = verify_blob(blob).manifest
    reader = ChunkReader(manifest, {artifact.digest: artifact for artifact in artifacts})
    pairs = [reader.part(n, blob[p.offset : p.offset + p.nbytes]) for n, p in enumerate(manifest.parts)]
    np.testing.assert_array_equal(flat(pairs), expected_values(path))


@all_chunks
def test_the_second_reader_decodes_the_recorded_values(path: Path) -> None:
    """Sums of products are taken in float64 there, so that their last bit in the chunk's type may differ; 2**-20 is of the largest sum."""
    tables = path.with_suffix(".artifact")
    artifacts = dict([second_reader.read_artifact(tables.read_bytes())]) if tables.exists() else {}
    manifest, pairs = second_reader.read_chunk(path.read_bytes(), artifacts)
    found, expected = flat(pairs), expected_values(path)
    if path.stem.partition("-")[0] not in SUMS:
        np.testing.assert_array_equal(found, expected)
        return
    np.testing.assert_allclose(found, expected, rtol=EPSILON[manifest["dtype"]], atol=2.0**-20 * float(np.abs(expected).max()))


@all_chunks
def test_encoding_the_same_passage_makes_the_same_chunk(path: Path) -> None:
    """What a library packs is compared field by field once unpacked."""
    golden = next(g for g in make.CHUNKS if g.name == path.stem)
    blob, old = make.chunk_blob(golden), path.read_bytes()
    if path.stem.partition("-")[0] not in OF_LIBRARIES:
        assert blob == old
        return
    assert unpacked_fields(blob) == unpacked_fields(old)


def unpacked_fields(blob: bytes) -> list[dict[str, bytes]]:
    """Return the raw bytes of every field of every part."""
    manifest = verify_blob(blob).manifest
    stages = {s.name: dict(s.params) for s in manifest.codec.stages}
    stored = [(part, part_fields(part, blob[part.offset : part.offset + part.nbytes])) for part in manifest.parts]

    def raw(field: FieldSpec, data: bytes) -> bytes:
        if field.packing == "raw":
            return data
        return bytes(find_byte_stage(field.packing).build(stages[field.packing]).unpack(data, field.raw_nbytes))

    return [{f.name: raw(f, bytes(data[f.name])) for f in part.fields} for part, data in stored]


@pytest.mark.parametrize("path", [path for path in CHUNKS if path.stem.partition("-")[0] in PACKED], ids=lambda path: path.stem)
def test_packed_golden_chunks_hold_a_packed_field(path: Path) -> None:
    """Otherwise they would prove nothing about packing."""
    manifest = verify_blob(path.read_bytes()).manifest
    assert PACKED[path.stem.partition("-")[0]] in {field.packing for part in manifest.parts for field in part.fields}


@pytest.mark.parametrize("name", ["raw-float32", "split-float32", "lossless-float32"])
def test_lossless_golden_chunks_restore_the_payload_of_a_nan(name: str) -> None:
    blob = (FOLDER / f"{name}.chunk").read_bytes()
    manifest = verify_blob(blob).manifest
    part = manifest.parts[0]
    k = decode_part(manifest, 0, blob[part.offset : part.offset + part.nbytes]).k
    words = k.contiguous().numpy().view(np.uint32).ravel()[:5]
    assert [hex(word) for word in words] == ["0x7fc01234", "0x7f800000", "0xff800000", "0x80000000", "0x1"]


def test_the_second_reader_imports_nothing_of_ours() -> None:
    """It has to stand for a reader in another language."""
    probe = (
        "import sys, tests.golden.second_reader; "
        "assert not any(m.split('.')[0] in ('kvstore', 'kvworker', 'kvclient', 'kvkernels', 'torch') for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60, cwd=FOLDER.parent.parent)


@pytest.mark.parametrize("vector", KEYS["namespaces"], ids=lambda v: v["identity"]["dtype"])
def test_namespaces_are_the_recorded_ones(vector: dict[str, Any]) -> None:
    expected = bytes.fromhex(vector["namespace"])
    assert identity_of(vector["identity"]).namespace == expected
    assert second_reader.namespace(vector["identity"]) == expected


def identity_of(fields: dict[str, Any]) -> ModelIdentity:
    """Return the identity that a vector describes."""
    groups = [
        {**g, "layers": tuple(g["layers"]), "readers": tuple(g["readers"]), "rope": rope_of(g["rope"])} for g in fields["layout"]["groups"]
    ]
    return ModelIdentity(**{**fields, "layout": KVLayout(tuple(LayerGroup(**group) for group in groups))})


def rope_of(fields: dict[str, Any]) -> RopeSpec:
    """Return the rotary embedding that a vector describes."""
    return RopeSpec(**{**fields, "params": tuple((name, value) for name, value in fields["params"])})


@pytest.mark.parametrize("vector", KEYS["alone"], ids=lambda v: f"{len(v['ids'])}-ids")
def test_keys_of_passages_alone_are_the_recorded_ones(vector: dict[str, Any]) -> None:
    space, expected = bytes.fromhex(vector["namespace"]), bytes.fromhex(vector["content"])
    assert content_key(space, Kind.ALONE, vector["ids"]) == expected
    assert second_reader.content_key(space, "alone", vector["ids"]) == expected


@pytest.mark.parametrize("vector", KEYS["chains"], ids=lambda v: v["kind"])
def test_keys_of_chains_are_the_recorded_ones(vector: dict[str, Any]) -> None:
    space, kind = bytes.fromhex(vector["namespace"]), vector["kind"]
    assert [k.hex() for k in chain_keys(space, Kind[kind.upper()], vector["chunks"])] == vector["contents"]
    parents = [bytes(32), *map(bytes.fromhex, vector["contents"])]
    kinds = ["alone" if kind == "document" else kind] + [kind] * (len(vector["chunks"]) - 1)
    links = zip(kinds, vector["chunks"], parents, strict=False)
    assert [second_reader.content_key(space, k, ids, parent).hex() for k, ids, parent in links] == vector["contents"]


@pytest.mark.parametrize("vector", KEYS["variants"], ids=lambda v: v["stages"][0]["name"])
def test_variants_are_the_recorded_ones(vector: dict[str, Any]) -> None:
    expected = bytes.fromhex(vector["variant"])
    assert PipelineSpec(tuple(map(StageSpec.from_json, vector["stages"])), vector["artifact"]).variant() == expected
    assert second_reader.variant(vector["stages"], vector["artifact"]) == expected


def test_storage_keys_are_the_recorded_ones() -> None:
    v = KEYS["storage"]
    server, secret, chunk = (bytes.fromhex(v[name]) for name in ("server_secret", "tenant_secret", "chunk_key"))
    for derive_secret, derive_key, key in (
        (tenant_secret, storage_key, ChunkKey.from_bytes(chunk)),
        (second_reader.tenant_secret, second_reader.storage_key, chunk),
    ):
        assert derive_secret(server, v["tenant"]) == secret
        assert derive_key(secret, v["tenant_epoch"], v["model_epoch"], key).hex() == v["storage_key"]


@pytest.mark.parametrize("at", [0, 9, 13, 17, 25, 33, 60, -1])
def test_the_second_reader_refuses_a_flipped_bit(at: int) -> None:
    blob = bytearray((FOLDER / "int8-float32.chunk").read_bytes())
    blob[at] ^= 4
    with pytest.raises(RefusedError):
        second_reader.read_chunk(bytes(blob))
