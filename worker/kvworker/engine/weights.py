"""Digests of a model directory: weights with the settings that decide the forward pass, and tokenizer.

Safetensors headers are read by hand with every size checked; tensors are hashed from a memory map, so torch is not needed and nothing is
copied. How tensors are spread over files does not change the digest.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstore.core import canonical
from kvstore.core.errors import FormatError, InvalidInputError, UnsupportedError

_MOST_HEADER_NBYTES = 100_000_000  # the limit that the safetensors format itself sets
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER_FILES = (
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
# Settings that change nothing in K and V: labels, defaults of generation, and the dtype, which the identity names itself.
_IDLE_SETTINGS = (
    "_name_or_path",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor's bytes lie: file, absolute start and stop; and what its header says of it."""

    path: Path
    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]


def read_settings(directory: Path) -> dict[str, Any]:
    """Return config.json as a dict; InvalidInputError when the directory holds none."""
    if not directory.is_dir():
        raise InvalidInputError(f"{directory} is not a directory; give a local model directory with config.json and safetensors")
    return _read_json(directory / "config.json", "a model directory needs config.json")


def weights_digest(directory: Path, settings: Mapping[str, Any], cache_dir: Path | None = None) -> str:
    """Return the sha256 (hex) over the tensors and over the settings that decide the forward pass.

    With `cache_dir`, the digest of the tensors is remembered there by the files' names, sizes and times.
    """
    files = _weight_files(directory)
    tensors = _tensors_digest(files) if cache_dir is None else _remembered(files, cache_dir)
    live = {name: value for name, value in settings.items() if name not in _IDLE_SETTINGS}
    text = json.dumps(live, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(b"larder/weights/1\0" + tensors + text.encode()).hexdigest()


def tokenizer_digest(directory: Path) -> str:
    """Return the sha256 (hex) over tokenizer.json, or over all other tokenizer files where there is none."""
    names = ["tokenizer.json"] if (directory / "tokenizer.json").is_file() else [n for n in _TOKENIZER_FILES if (directory / n).is_file()]
    if not names:
        raise InvalidInputError(f"{directory.name} holds no tokenizer; add tokenizer.json")
    digest = hashlib.sha256(b"larder/tokenizer/1\0")
    for name in names:
        digest.update(name.encode() + b"\0" + hashlib.sha256((directory / name).read_bytes()).digest())
    return digest.hexdigest()


def _weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files that make up the model, by name."""
    if (directory / _SINGLE).is_file():
        return [directory / _SINGLE]
    if not (directory / _INDEX).is_file():
        pickled = any(directory.glob("*.bin"))
        hint = "pickled .bin weights are never loaded; save the model again as safetensors" if pickled else f"add {_SINGLE} or {_INDEX}"
        raise UnsupportedError(f"{directory.name} holds no safetensors: {hint}")
    shards = _read_json(directory / _INDEX, "the index of the shards").get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) and Path(name).name == name for name in shards.values()):
        raise FormatError(f"{_INDEX} must map tensor names to file names inside the directory")
    return [directory / name for name in sorted(set(shards.values()))]


def _tensors_digest(files: Sequence[Path]) -> bytes:
    """Return the sha256 over name, dtype, shape and bytes of all tensors, sorted by name."""
    tensors: dict[str, _Tensor] = {}
    for path in files:
        for name, tensor in _read_header(path).items():
            if name in tensors:
                raise FormatError(f"tensor {name} is in {tensors[name].path.name} and in {path.name}; keep one")
            tensors[name] = tensor
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        head = canonical.dumps([name, tensor.dtype, list(tensor.shape), tensor.stop - tensor.start])
        digest.update(struct.pack("<Q", len(head)) + head)
        _hash_bytes(digest, tensor)
    return digest.digest()


def _hash_bytes(digest: Any, tensor: _Tensor) -> None:
    """Feed a tensor's bytes to `digest` from a memory map."""
    if tensor.start == tensor.stop:
        return
    with (
        tensor.path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
        view[tensor.start : tensor.stop] as part,
    ):
        digest.update(part)


def _read_header(path: Path) -> dict[str, _Tensor]:
    """Return the tensors that a safetensors file declares; FormatError when a size does not fit the file."""
    try:
        nbytes = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            header_nbytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else nbytes
            if header_nbytes > min(_MOST_HEADER_NBYTES, nbytes - 8):
                raise FormatError(f"{path.name}: a header of {header_nbytes} B does not fit a file of {nbytes} B")
            header = json.loads(file.read(header_nbytes))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path.name} is not a safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise FormatError(f"{path.name}: the header must be a JSON object")
    header.pop("__metadata__", None)
    return {name: _declared(path, name, entry, 8 + header_nbytes, nbytes) for name, entry in header.items()}


def _declared(path: Path, name: str, entry: Any, data_start: int, file_nbytes: int) -> _Tensor:
    """Return one header entry as a tensor inside the file; FormatError otherwise."""
    try:
        start, stop = entry["data_offsets"]
        dtype, shape = entry["dtype"], tuple(entry["shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path.name}: tensor {name} lacks dtype, shape or data_offsets") from error
    if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in (start, stop, *shape)):
        raise FormatError(f"{path.name}: tensor {name} needs a dtype name and sizes of 0 or more")
    if not start <= stop <= file_nbytes - data_start:
        raise FormatError(f"{path.name}: tensor {name} lies at {start} to {stop} B of {file_nbytes - data_start} B of data")
    return _Tensor(path, data_start + start, data_start + stop, dtype, shape)


def _remembered(files: Sequence[Path], cache_dir: Path) -> bytes:
    """Return the tensors' digest from the cache, else hash and remember it."""
    stamp = [[str(p.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns] for p, s in ((p, p.stat()) for p in files)]
    note = cache_dir / f"weights-{canonical.digest(stamp).hex()[:32]}.json"
    try:
        known = canonical.loads(note.read_bytes())
        if known["stamp"] == stamp:
            return bytes.fromhex(known["digest"])
    except (OSError, FormatError, KeyError, ValueError, TypeError):
        note.unlink(missing_ok=True)  # absent or damaged: hash again
    digest = _tensors_digest(files)
    cache_dir.mkdir(parents=True, exist_ok=True)
    fresh = note.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_bytes(canonical.dumps({"stamp": stamp, "digest": digest.hex()}))
    fresh.replace(note)
    return digest


def _read_json(path: Path, why: str) -> dict[str, Any]:
    """Return a JSON object; InvalidInputError when the file is absent, FormatError when it is something else."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidInputError(f"{path.parent.name}: {why}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path.name} must hold a JSON object")
    return value
