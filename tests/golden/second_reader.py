"""A second reader of stored chunks, written from proto/FORMAT.md alone: it shares no code with Larder.

Sections 1 to 3 and 5.1 are here, 4 in `second_packings`, 5 in `second_transforms` and what it imports.
Needs numpy and xxhash; zstandard only for chunks that are packed with it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash

from tests.golden.second_packings import UNPACKERS, require
from tests.golden.second_parts import Geometry, Part, take
from tests.golden.second_transforms import TRANSFORMS, restore

ITEM = {"uint8": "u1", "int8": "i1", "float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "int32": "<i4", "int64": "<i8"}
KINDS = {"alone": 0, "document": 1, "prefix": 2}


def canonical(value: Any) -> bytes:
    """Spell JSON canonically."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def namespace(identity: dict[str, Any]) -> bytes:
    """Section 1: namespace."""
    fields = {k: identity[k] for k in ("adapter", "dtype", "layout", "tokenizer_digest", "weights_digest")}
    return hashlib.sha256(canonical({"larder": "namespace/1", **fields})).digest()


def content_key(space: bytes, kind: str, ids: list[int], parent: bytes = bytes(32)) -> bytes:
    """Section 1: content key."""
    body = space + bytes([KINDS[kind]]) + parent + struct.pack(f"<Q{len(ids)}I", len(ids), *ids)
    return hashlib.sha256(b"larder/content/1\0" + body).digest()


def variant(stages: list[dict[str, Any]], artifact: str) -> bytes:
    """Section 1: variant."""
    return hashlib.sha256(canonical({"artifact": artifact, "larder": "variant/1", "stages": stages})).digest()


def tenant_secret(server_secret: bytes, tenant: str) -> bytes:
    """Section 1: a tenant's secret."""
    return hmac.new(server_secret, b"larder/tenant/1\0" + tenant.encode(), "sha256").digest()


def storage_key(secret: bytes, tenant_epoch: int, model_epoch: int, chunk_key: bytes) -> bytes:
    """Section 1: storage key."""
    return hmac.new(secret, b"larder/storage/1\0" + struct.pack("<QQ", tenant_epoch, model_epoch) + chunk_key, "sha256").digest()


def xxh3(data: bytes) -> bytes:
    """Return the XXH3-128 digest."""
    return xxhash.xxh3_128_digest(data)


def read_chunk(blob: bytes, artifacts: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], list[tuple[np.ndarray, np.ndarray]]]:
    """Verify a blob and return its manifest and, per part, K and V as float32; `artifacts` are tables by digest, from `read_artifact`."""
    manifest, parts = open_blob(blob)
    codec = manifest["codec"]
    n_stages = next(n for n, stage in enumerate(codec) if stage["name"] not in TRANSFORMS) + 1
    read = [
        Part(read_fields(part, data, codec[n_stages:]), geometry_of(manifest, part), manifest["dtype"], {}, {})
        for part, data in zip(manifest["parts"], parts, strict=True)
    ]
    if "need" in read[0].fields:
        take(read[0], "need", "float16", (manifest["n_tokens"],))
    pairs = restore(codec[:n_stages], read, artifacts or {})
    require(not any(part.fields for part in read), "a field too many")
    return manifest, pairs


def read_artifact(blob: bytes) -> tuple[str, dict[int, dict[str, np.ndarray]]]:
    """Section 5.1: return the digest of an artifact and its tables by layer and name."""
    manifest, parts = open_blob(blob)
    found: dict[int, dict[str, np.ndarray]] = {}
    described, data = [], b""
    require(manifest["kind"] == "artifact" and len(manifest["codec"]) == 1, "kind of an artifact")
    for part, own in zip(manifest["parts"], parts, strict=True):
        (layer,) = part["layers"]
        found[layer] = {name: array for name, (_, array) in read_fields(part, own, []).items()}
        described.append([layer, [[f["name"], f["dtype"], f["shape"]] for f in part["fields"]]])
        data += b"".join(array.tobytes() for array in found[layer].values())
    head = {"larder": "artifact/1", "namespace": manifest["namespace"], "subject": manifest["codec"][0], "layers": described}
    digest = hashlib.sha256(canonical(head) + data).hexdigest()
    require(digest == manifest["content"], "digest of an artifact")
    return digest, found


def open_blob(blob: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Section 2: verify a blob and return its manifest and the bytes of its parts."""
    require(len(blob) >= 48 and blob[:8] == b"KVLARDER", "magic")
    version, manifest_nbytes, nbytes, zero = struct.unpack_from("<IIQQ", blob, 8)
    require(version == 1 and zero == 0 and nbytes == len(blob) and manifest_nbytes <= 4 << 20, "header")
    text = blob[48 : 48 + manifest_nbytes]
    require(xxh3(blob[:32] + text) == blob[32:48], "digest of the manifest")
    manifest = json.loads(text)
    require(canonical(manifest) == text, "canonical JSON")
    end, parts = 48 + manifest_nbytes, []
    for part in manifest["parts"]:
        start = up_to_64(end)
        require(part["offset"] == start and not any(blob[end:start]), "place of a part")
        end = start + part["nbytes"]
        require(xxh3(blob[start:end]).hex() == part["xxh3"], "digest of a part")
        parts.append(blob[start:end])
    require(end == nbytes, "end of the blob")
    return manifest, parts


def up_to_64(offset: int) -> int:
    """Round up to a multiple of 64."""
    return (offset + 63) // 64 * 64


def geometry_of(manifest: dict[str, Any], part: dict[str, Any]) -> Geometry:
    """Section 3: the geometry of a part."""
    layers = tuple(part["layers"])
    return Geometry(len(layers), layers, part["kv_heads"], manifest["n_tokens"], part["k_dim"], part["v_dim"])


def read_fields(part: dict[str, Any], data: bytes, stages: list[dict[str, Any]]) -> dict[str, tuple[str, np.ndarray]]:
    """Section 3: the fields of a part, by name, with their types."""
    fields, end = {}, 0
    for field in part["fields"]:
        start = up_to_64(end)
        require(field["offset"] == start and not any(data[end:start]), "place of a field")
        end = start + field["nbytes"]
        raw = unpack(field, data[start:end], stages)
        fields[field["name"]] = (field["dtype"], np.frombuffer(raw, ITEM[field["dtype"]]).reshape(field["shape"]))
    require(end == part["nbytes"], "end of a part")
    return fields


def unpack(field: dict[str, Any], data: bytes, stages: list[dict[str, Any]]) -> bytes:
    """Section 4."""
    raw_nbytes, packing = math.prod(field["shape"]) * np.dtype(ITEM[field["dtype"]]).itemsize, field["packing"]
    if packing != "raw":
        params = [s["params"] for s in stages if s["name"] == packing and s["params"]["fields"] in ("", field["name"].split(".")[-1])]
        require(len(params) == 1 and packing in UNPACKERS, "packing of a field")
        data = UNPACKERS[packing](data, raw_nbytes, params[0])
    require(len(data) == raw_nbytes, "size of a field")
    return data
