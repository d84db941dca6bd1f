"""Make the golden files beside this script: `python -m tests.golden.make`.

They were made once and never change: a released byte stays readable. The script refuses to overwrite; a new format version adds files.
The inputs come from integer arithmetic, so that they are the same everywhere. Codecs with calibrated tables have an artifact beside them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kvstore.core.blob import parse_header
from kvstore.core.identity import KVLayout, LayerGroup, ModelIdentity, RopeSpec
from kvstore.core.key import ChunkKey, Kind, chain_keys, content_key, storage_key, tenant_secret
from kvstore.core.stages import PipelineSpec, StageSpec
from kvworker.chunk import DTYPES, KVChunk, PassageKV
from kvworker.codec.artifact import Artifact
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.decode import decode_chunk
from kvworker.codec.pipeline import Pipeline
from kvworker.codec.registry import pipeline_of
from kvworker.codec.specs import find_codec
from kvworker.codec.stages import Calibrated
from tests.golden.tables import numbers, tables_of

FOLDER = Path(__file__).parent
LLAMA3 = (("factor", 8.0), ("high_freq_factor", 4.0), ("low_freq_factor", 1.0), ("original_max_position_embeddings", 8192.0))


@dataclass(frozen=True)
class Golden:
    """One golden chunk: the codec and what goes into it."""

    name: str
    codec: str
    dtype: str
    n_tokens: int
    kind: Kind = Kind.ALONE
    has_need: bool = False
    has_asked: bool = False


CHUNKS = (
    Golden("raw-float32", "raw", "float32", 3),
    Golden("raw-bfloat16", "raw", "bfloat16", 1, Kind.PREFIX),
    Golden("raw-float16", "raw", "float16", 3),
    Golden("split-float32", "exponent_split", "float32", 3),
    Golden("split-bfloat16", "exponent_split", "bfloat16", 3),
    Golden("split-float16", "exponent_split", "float16", 3),
    Golden("lossless-float32", "lossless", "float32", 5),
    Golden("lossless-bfloat16", "lossless", "bfloat16", 5, Kind.DOCUMENT),
    Golden("int8-float32", "int8", "float32", 3),
    Golden("int8-bfloat16", "int8", "bfloat16", 5),
    Golden("int8-float16", "int8", "float16", 1),
    Golden("kivi4-bfloat16", "kivi4", "bfloat16", 5),
    Golden("kivi4-group8-float32", "kivi:bits=4,group=8", "float32", 9),
    Golden("kivi2-group8-float16", "kivi:bits=2,group=8", "float16", 9),
    Golden("kivi3-group8-bfloat16", "kivi:bits=3,group=8", "bfloat16", 11),
    Golden("fp8-bfloat16", "fp8", "bfloat16", 5),
    Golden("fp8-float32", "fp8", "float32", 3),
    Golden("nvfp4-bfloat16", "nvfp4", "bfloat16", 5),
    Golden("mxfp4-float16", "mxfp4", "float16", 5),
    Golden("deflate-bfloat16", "exponent_split+deflate:fields=exponent", "bfloat16", 40),
    Golden("lz4-float32", "exponent_split+lz4:fields=rest", "float32", 40),
    Golden("planes-float32", "raw+planes:width=4", "float32", 40),
    Golden("rans-bfloat16", "exponent_split+rans:fields=exponent", "bfloat16", 40),
    Golden("top16-bfloat16", "exponent_split+top16", "bfloat16", 40),
    Golden("hadamard4-bfloat16", "hadamard:bits=4", "bfloat16", 5),
    Golden("hadamard3-float32", "hadamard:bits=3", "float32", 3),
    Golden("turboquant-bfloat16", "turboquant:k_bits=3,v_bits=2", "bfloat16", 5),
    Golden("turboquant-float16", "turboquant:k_bits=4,v_bits=1", "float16", 3),
    Golden("sinks-kivi4-bfloat16", "sinks:n=4+kivi:bits=4,group=64", "bfloat16", 9),
    Golden("sinks-int8-float32", "sinks:n=4+int8", "float32", 3),
    Golden("skvq-bfloat16", "skvq:k_levels=4,v_levels=3,group=16", "bfloat16", 5),
    Golden("skvq-float16", "skvq:k_levels=8,v_levels=16,group=16,parameters=float16", "float16", 5),
    Golden("cq-bfloat16", "cq:couple=4,bits=4", "bfloat16", 5),
    Golden("cq-float32", "cq:couple=2,bits=5", "float32", 3),
    Golden("kvquant-bfloat16", "sinks:n=1+kvquant:k_bits=3,v_bits=3,outliers=100", "bfloat16", 5),
    Golden("kvquant-float32", "kvquant:k_bits=4,v_bits=2,outliers=0", "float32", 3),
    Golden("csr-float32", "csr:k_steps=3,v_steps=2,k_split=1,v_split=2,atoms=16", "float32", 3),
    Golden("pca-bfloat16", "pca:ratio=4", "bfloat16", 5),
    Golden("cross-bfloat16", "sinks:n=1+cross+pca:over=model,ratio=4", "bfloat16", 5),
    Golden("think-bfloat16", "think:drop=40+int8", "bfloat16", 5),
    Golden("lorc-bfloat16", "lorc+int8", "bfloat16", 5),
    Golden("cachegen-bfloat16", "cachegen:fine=32,coarse=16+trim:fields=streams", "bfloat16", 40),
    Golden("clipped2-bfloat16", "sinks:n=1+clipped:bits=2,group=8", "bfloat16", 9),
    Golden("clipped3-float16", "clipped:bits=3,group=16", "float16", 5),
    Golden("think-queries-bfloat16", "sinks:n=1+think_queries:drop=40+int8", "bfloat16", 5, has_asked=True),
    Golden("think-queries-float32", "think_queries:drop=60+raw", "float32", 3),
    Golden("need-raw-float16", "raw", "float16", 5, has_need=True),
    Golden("need-int8-bfloat16", "int8", "bfloat16", 3, has_need=True),
)


def identity(dtype: str) -> ModelIdentity:
    """Return a small model: two groups of layers that differ in every dimension."""
    groups = (
        LayerGroup((0, 1), 2, 6, 10, RopeSpec("default", 10000.0, 6)),
        LayerGroup((2,), 1, 4, 4, RopeSpec("llama3", 500000.0, 4, LLAMA3), kind="window", window=512, readers=(3,)),
    )
    return ModelIdentity("golden", "ab" * 32, KVLayout(groups), dtype, "cd" * 32)


def token_ids(n_tokens: int) -> list[int]:
    """Return ids up to the largest that fits."""
    return [(7919 * i + 13) % 50000 for i in range(n_tokens - 1)] + [2**32 - 1]


def passage(golden: Golden) -> PassageKV:
    """Return the KV that a golden chunk holds: a lossless one begins with odd bit patterns, every one has an outlier channel."""
    is_lossless = golden.codec.partition("+")[0] in ("raw", "exponent_split", "lossless")
    chunks = []
    for n, group in enumerate(identity(golden.dtype).layout.groups):
        rows = (len(group.layers), group.kv_heads, golden.n_tokens)
        k, v = (_values((*rows, dim), golden.dtype, seed) for dim, seed in ((group.k_dim, 2 * n + 1), (group.v_dim, 2 * n + 2)))
        k[..., -1] *= 16
        if is_lossless:
            _put_odd_patterns(k)
        need = torch.arange(golden.n_tokens).to(torch.float16) / 64 if golden.has_need and n == 0 else None
        asked = _values((*rows[:2], group.k_dim), "float32", 2 * n + 7).square() if golden.has_asked else None
        chunks.append(KVChunk(k, v, need, asked))
    return tuple(chunks)


def _values(shape: tuple[int, ...], dtype: str, seed: int) -> torch.Tensor:
    """Return multiples of 2**-11 within -4 and 4, from a linear congruence."""
    return (torch.tensor(numbers(torch.Size(shape).numel(), 2**14, seed)) / 2**11 - 4).view(shape).to(DTYPES[dtype])


def _put_odd_patterns(k: torch.Tensor) -> None:
    """Write NaN with a payload, infinities, -0 and the smallest subnormal over the first values of k."""
    patterns = {
        torch.float32: (0x7FC01234, 0x7F800000, -0x00800000, -0x80000000, 1),
        torch.bfloat16: (0x7FC5, 0x7F80, -0x0080, -0x8000, 1),
        torch.float16: (0x7E35, 0x7C00, -0x0400, -0x8000, 1),
    }[k.dtype]
    words = k.view(-1).view(torch.int32 if k.itemsize == 4 else torch.int16)
    words[: len(patterns)] = torch.tensor(patterns, dtype=words.dtype)[: len(words)]


def artifact_of(golden: Golden) -> Artifact | None:
    """Return the tables of a golden chunk's calibrated stage, if it has one."""
    model, stages = identity(golden.dtype), find_codec(golden.codec).stages
    stage = next((stage for stage in stages if isinstance(stage, Calibrated)), None)
    return None if stage is None else Artifact(model.namespace, stage.subject, tables_of(stage.spec, model.layout))


def shelf(space: bytes, artifact: Artifact | None) -> Artifacts:
    """Return artifacts that hold this one."""
    found = Artifacts(space)
    if artifact is not None:
        found.add(artifact)
    return found


def chunk_blob(golden: Golden) -> bytes:
    """Return the blob of a golden chunk."""
    model, artifact = identity(golden.dtype), artifact_of(golden)
    ids, parent = token_ids(golden.n_tokens), content_key(model.namespace, Kind.ALONE, [1, 2, 3])
    if golden.kind is Kind.ALONE:
        key, parents = content_key(model.namespace, Kind.ALONE, ids), None
    else:
        key, parents = content_key(model.namespace, golden.kind, ids, parent), parent
    stages = find_codec(golden.codec).stages
    named = Pipeline(tuple(s.naming(artifact.digest) if artifact and isinstance(s, Calibrated) else s for s in stages))
    return bytes(named.bound(shelf(model.namespace, artifact)).encode(passage(golden), model, golden.kind, key, parents))


def decoded_values(blob: bytes, artifact: Artifact | None) -> bytes:
    """Return what a blob decodes to, widened to float32: per part K then V."""
    manifest = parse_header(blob).manifest
    parts = [blob[part.offset : part.offset + part.nbytes] for part in manifest.parts]
    codec = pipeline_of(manifest.codec).bound(shelf(manifest.namespace, artifact))
    return b"".join(x.float().contiguous().numpy().tobytes() for chunk in decode_chunk(manifest, parts, codec) for x in (chunk.k, chunk.v))


def key_vectors() -> dict[str, Any]:
    """Return identities, token ids, stages and secrets with the keys that follow from them."""
    model = identity("bfloat16")
    space = model.namespace
    documents = [[5, 6, 7], [8], token_ids(4)]
    stages = [PipelineSpec((StageSpec("raw"),)), find_codec("kivi4").spec, find_codec("lossless").spec]
    chunk = ChunkKey(space, content_key(space, Kind.ALONE, [5, 6, 7]), stages[0].variant())
    secret = tenant_secret(b"\x01" * 32, "acme-Ü")
    return {
        "namespaces": [{"identity": asdict(m), "namespace": m.namespace.hex()} for m in map(identity, DTYPES)],
        "alone": [{"namespace": space.hex(), "ids": ids, "content": content_key(space, Kind.ALONE, ids).hex()} for ids in ([], *documents)],
        "chains": [
            {
                "namespace": space.hex(),
                "kind": kind.name.lower(),
                "chunks": documents,
                "contents": [key.hex() for key in chain_keys(space, kind, documents)],
            }
            for kind in (Kind.DOCUMENT, Kind.PREFIX)
        ],
        "variants": [{"stages": [s.to_json() for s in spec.stages], "artifact": "", "variant": spec.variant().hex()} for spec in stages],
        "storage": {
            "server_secret": "01" * 32,
            "tenant": "acme-Ü",
            "tenant_secret": secret.hex(),
            "tenant_epoch": 3,
            "model_epoch": 4,
            "chunk_key": chunk.to_bytes().hex(),
            "storage_key": storage_key(secret, 3, 4, chunk).hex(),
        },
    }


def main() -> None:
    """Write every file that is not there yet."""
    for golden in CHUNKS:
        blob, artifact = chunk_blob(golden), artifact_of(golden)
        _write_once(FOLDER / f"{golden.name}.chunk", blob)
        _write_once(FOLDER / f"{golden.name}.values", decoded_values(blob, artifact))
        if artifact is not None:
            _write_once(FOLDER / f"{golden.name}.artifact", bytes(artifact.to_bytes()))
    _write_once(FOLDER / "keys.json", json.dumps(key_vectors(), indent=1).encode())


def _write_once(path: Path, data: bytes) -> None:
    """Write a file unless it is there."""
    if not path.exists():
        path.write_bytes(data)


if __name__ == "__main__":
    main()
