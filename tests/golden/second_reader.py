"""A second reader of stored chunks, written from proto/FORMAT.md alone: it shares no code with Larder.

Needs numpy and xxhash; zstandard only for chunks that are packed with it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import struct
import zlib
from typing import Any

import numpy as np
import xxhash

ITEM = {"uint8": "u1", "int8": "i1", "float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "int32": "<i4", "int64": "<i8"}
KINDS = {"alone": 0, "document": 1, "prefix": 2}


class RefusedError(Exception):
    """The bytes are not a chunk of version 1."""


def require(is_right: bool, what: str) -> None:
    """Raise RefusedError unless it is right."""
    if not is_right:
        raise RefusedError(what)


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


def read_chunk(blob: bytes) -> tuple[dict[str, Any], list[tuple[np.ndarray, np.ndarray]]]:
    """Verify a blob and return its manifest and, per part, K and V as float32."""
    require(len(blob) >= 48 and blob[:8] == b"KVLARDER", "magic")
    version, manifest_nbytes, nbytes, zero = struct.unpack_from("<IIQQ", blob, 8)
    require(version == 1 and zero == 0 and nbytes == len(blob) and manifest_nbytes <= 4 << 20, "header")
    text = blob[48 : 48 + manifest_nbytes]
    require(xxh3(blob[:32] + text) == blob[32:48], "digest of the manifest")
    manifest = json.loads(text)
    require(canonical(manifest) == text, "canonical JSON")
    end, pairs = 48 + manifest_nbytes, []
    for part in manifest["parts"]:
        start = up_to_64(end)
        require(part["offset"] == start and not any(blob[end:start]), "place of a part")
        end = start + part["nbytes"]
        require(xxh3(blob[start:end]).hex() == part["xxh3"], "digest of a part")
        pairs.append(read_part(manifest, part, blob[start:end]))
    require(end == nbytes, "end of the blob")
    return manifest, pairs


def up_to_64(offset: int) -> int:
    """Round up to a multiple of 64."""
    return (offset + 63) // 64 * 64


def read_part(manifest: dict[str, Any], part: dict[str, Any], data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Section 3 to 5: one part."""
    fields, end = {}, 0
    for field in part["fields"]:
        start = up_to_64(end)
        require(field["offset"] == start and not any(data[end:start]), "place of a field")
        end = start + field["nbytes"]
        raw = unpack(field, data[start:end], manifest["codec"][1:])
        fields[field["name"]] = (field["dtype"], np.frombuffer(raw, ITEM[field["dtype"]]).reshape(field["shape"]))
    require(end == part["nbytes"], "end of a part")
    rows = (len(part["layers"]), part["kv_heads"], manifest["n_tokens"])
    stage = manifest["codec"][0]
    k, v = (
        DECODERS[stage["name"]](fields, side, (*rows, part[f"{side}_dim"]), manifest["dtype"], **stage["params"]) for side in ("k", "v")
    )
    if part["group"] == 0 and "need" in fields:
        take(fields, "need", "float16", (manifest["n_tokens"],))
    require(not fields, "a field too many")
    return k, v


def unpack(field: dict[str, Any], data: bytes, stages: list[dict[str, Any]]) -> bytes:
    """Section 4."""
    raw_nbytes, packing = math.prod(field["shape"]) * np.dtype(ITEM[field["dtype"]]).itemsize, field["packing"]
    if packing != "raw":
        params = [s["params"] for s in stages if s["name"] == packing and s["params"]["fields"] in ("", field["name"].split(".")[-1])]
        require(len(params) == 1 and packing in UNPACKERS, "packing of a field")
        data = UNPACKERS[packing](data, raw_nbytes, params[0])
    require(len(data) == raw_nbytes, "size of a field")
    return data


def zstd(data: bytes, n: int, params: dict[str, Any]) -> bytes:
    """Section 4: zstd."""
    import zstandard

    require(zstandard.frame_content_size(data) == n, "size of a frame")
    return zstandard.decompress(data)


def deflate(data: bytes, n: int, params: dict[str, Any]) -> bytes:
    """Section 4: deflate."""
    stream = zlib.decompressobj(wbits=-15)
    raw = stream.decompress(data, n + 1)
    require(stream.eof and not stream.unused_data, "end of a stream")
    return raw


def lz4(data: bytes, n: int, params: dict[str, Any]) -> bytes:
    """Section 4: lz4, a block: sequences of literals and of a match, the last of literals alone."""
    raw, at = bytearray(), 0

    def length(nibble: int) -> int:
        nonlocal at
        more = 255 if nibble == 15 else 0
        while more == 255:
            more, at = data[at], at + 1
            nibble += more
        return nibble

    while at < len(data):
        token, at = data[at], at + 1
        n_literals = length(token >> 4)
        raw += data[at : at + n_literals]
        at += n_literals
        if at == len(data):
            break
        back, at = data[at] | data[at + 1] << 8, at + 2
        require(0 < back <= len(raw), "reach of a match")
        for _ in range(length(token & 15) + 4):
            raw.append(raw[-back])
        require(len(raw) <= n, "size of a block")
    return bytes(raw)


def planes(data: bytes, n: int, params: dict[str, Any]) -> bytes:
    """Section 4: planes."""
    flat, raw, at = zstd(data, n, params), bytearray(n), 0
    for residue in range(params["width"]):
        for place in range(residue, n, params["width"]):
            raw[place], at = flat[at], at + 1
    return bytes(raw)


def top16(data: bytes, n: int, params: dict[str, Any]) -> bytes:
    """Section 4: top16."""
    half = (n + 1) // 2
    raw = bytearray(data[data[16 + i // 2] >> i % 2 * 4 & 15] for i in range(n))
    escapes = data[16 + half :]
    require(len(escapes) % 5 == 0, "escapes")
    last = -1
    for start in range(0, len(escapes), 5):
        place, value = struct.unpack_from("<IB", escapes, start)
        require(last < place < n, "place of an escape")
        raw[place], last = value, place
    return bytes(raw)


def rans(data: bytes, n: int, params: dict[str, Any]) -> bytes:
    """Section 4: rans."""
    n_kinds = data[0] + 1
    frequencies, at, raw = struct.unpack_from(f"<{n_kinds}H", data, 1), 1 + 2 * n_kinds, bytearray()
    require(n_kinds > 1 and sum(frequencies) == 4096 and 0 not in frequencies, "frequencies")
    before = [sum(frequencies[:s]) for s in range(n_kinds)]
    symbol_of = [s for s in range(n_kinds) for _ in range(frequencies[s])]
    while len(raw) < n:
        (nbytes,) = struct.unpack_from("<I", data, at)
        stream, at, m = data[at + 4 : at + 4 + nbytes], at + 4 + nbytes, min(1 << 20, n - len(raw))
        width = -(-m // 1024)
        x, word = list(struct.unpack_from(f"<{width}I", stream)), 4 * width
        for p in range(m):
            lane, r = p % width, x[p % width] % 4096
            s = symbol_of[r]
            x[lane] = frequencies[s] * (x[lane] // 4096) + r - before[s]
            if x[lane] < 65536:
                x[lane], word = x[lane] * 65536 + struct.unpack_from("<H", stream, word)[0], word + 2
            raw.append(s)
        require(word == len(stream) and set(x) == {65536}, "end of a stream")
    require(at == len(data), "end of the streams")
    return bytes(raw)


UNPACKERS = {"zstd": zstd, "deflate": deflate, "lz4": lz4, "planes": planes, "top16": top16, "rans": rans}


def take(fields: dict[str, Any], name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Take a field out, checking its type and shape; floats become float32."""
    found, array = fields.pop(name)
    require(found == dtype and array.shape == shape, name)
    if dtype == "bfloat16":
        return (array.astype("<u4") << 16).view("<f4")
    return array.astype("<f4") if "float" in dtype else array


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 to the chunk's type, ties to even."""
    if dtype == "float16":
        return x.astype("<f2").astype("<f4")
    if dtype == "bfloat16":
        bits = x.view("<u4").astype("<u8")
        low, high = bits & 0xFFFF, bits >> 16
        goes_up = (low > 0x8000) | ((low == 0x8000) & (high % 2 == 1))
        return ((high + goes_up) << 16).astype("<u4").view("<f4")
    return x


def saturated(x: np.ndarray, dtype: str) -> np.ndarray:
    """Section 5: rounded, but in float16 to at most 65504."""
    return rounded(np.clip(x, -65504, 65504) if dtype == "float16" else x, dtype)


def raw(fields: dict[str, Any], side: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Section 5: raw."""
    return take(fields, f"{side}.values", dtype, shape)


def exponent_split(fields: dict[str, Any], side: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Section 5: exponent_split."""
    exponent = take(fields, f"{side}.exponent", "uint8", shape).astype("<u4")
    rest = take(fields, f"{side}.rest", "uint8", ((4 if dtype == "float32" else 2) - 1, *shape)).astype("<u4")
    t = (rest[0] & 0x80) << 8 | exponent << 7 | (rest[0] & 0x7F)
    if dtype == "float32":
        return (t << 16 | rest[1] << 8 | rest[2]).view("<f4")
    return (t << 16).view("<f4") if dtype == "bfloat16" else t.astype("<u2").view("<f2").astype("<f4")


def int8(fields: dict[str, Any], side: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Section 5: int8."""
    codes = take(fields, f"{side}.codes", "int8", shape).astype("<f4")
    return rounded(codes * take(fields, f"{side}.scale", "float32", (*shape[:3], 1)), dtype)


def e2m1(fields: dict[str, Any], side: str, shape: tuple[int, ...], step: np.ndarray, block: int, dtype: str) -> np.ndarray:
    """Section 5: codes of float4 E2M1 times the steps of their blocks."""
    packed = take(fields, f"{side}.codes", "uint8", (*shape[:3], -(-shape[3] // 2)))
    sizes = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    values = np.array([*sizes, *(-size for size in sizes)], "<f4")
    channels = [values[packed[..., d // 2] >> d % 2 * 4 & 15] * step[..., d // block] for d in range(shape[3])]
    return saturated(np.stack(channels, -1), dtype)


def nvfp4(fields: dict[str, Any], side: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Section 5: nvfp4."""
    step = e4m3(take(fields, f"{side}.steps", "uint8", (*shape[:3], -(-shape[3] // 16))))
    return e2m1(fields, side, shape, step * take(fields, f"{side}.scale", "float32", shape[:2])[..., None, None], 16, dtype)


def mxfp4(fields: dict[str, Any], side: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Section 5: mxfp4."""
    exponent = take(fields, f"{side}.steps", "uint8", (*shape[:3], -(-shape[3] // 32)))
    return e2m1(fields, side, shape, (exponent.astype("<u4") << 23).view("<f4"), 32, dtype)


def kivi(fields: dict[str, Any], side: str, shape: tuple[int, ...], dtype: str, bits: int, group: int) -> np.ndarray:
    """Section 5: kivi, one position after the other."""
    axis, (k, b) = (2 if side == "k" else 3), {2: (4, 1), 3: (8, 3), 4: (2, 1)}[bits]
    n_bytes, n_groups = -(-shape[axis] * bits // 8), -(-shape[axis] // group)
    of_bytes, of_groups = ((*shape[:axis], length, *shape[axis + 1 :]) for length in (n_bytes, n_groups))
    codes = np.moveaxis(take(fields, f"{side}.codes", "uint8", of_bytes), axis, 0)
    scale = np.moveaxis(take(fields, f"{side}.scale", dtype, of_groups), axis, 0)
    zero = np.moveaxis(take(fields, f"{side}.zero", dtype, of_groups), axis, 0)
    lines = []
    for position in range(shape[axis]):
        word = sum(codes[n].astype("<u4") << 8 * i for i, n in enumerate(range(position // k * b, min(position // k * b + b, n_bytes))))
        code = word >> position % k * bits & (1 << bits) - 1
        lines.append(code.astype("<f4") * scale[position // group] + zero[position // group])
    return rounded(np.ascontiguousarray(np.moveaxis(np.stack(lines), 0, axis)), dtype)


def e4m3(codes: np.ndarray) -> np.ndarray:
    """Section 5: the values of float8 E4M3."""
    values = []
    for code in range(256):
        exponent, fraction = code >> 3 & 15, code & 7
        value = math.nan if code & 127 == 127 else fraction * 2.0**-9 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
        values.append(-value if code & 128 else value)
    return np.array(values, "<f4")[codes]


def fp8(fields: dict[str, Any], side: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Section 5: fp8."""
    codes = take(fields, f"{side}.codes", "uint8", shape)
    return saturated(e4m3(codes) * take(fields, f"{side}.scale", "float32", shape[:2])[..., None, None], dtype)


DECODERS = {"raw": raw, "exponent_split": exponent_split, "int8": int8, "fp8": fp8, "nvfp4": nvfp4, "mxfp4": mxfp4, "kivi": kivi}
