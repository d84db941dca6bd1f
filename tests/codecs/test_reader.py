"""The client's own decoder: what is peculiar to it; that its values equal the worker's is in the codec contract."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from kvclient.reader.chunk import decode_part
from kvstore.core.blob import parse_header
from kvstore.core.errors import FormatError, InvalidInputError, MissingExtraError, UnsupportedError
from kvstore.core.manifest import Manifest
from kvworker.codec.decode import decode_part as torch_decode_part
from kvworker.codec.specs import find_codec

Encode = Callable[[str], bytearray]


def first_part(blob: bytearray) -> tuple[Manifest, bytes]:
    """Return the manifest and the bytes of part 0."""
    manifest = parse_header(blob).manifest
    return manifest, bytes(blob[manifest.parts[0].offset : manifest.parts[0].offset + manifest.parts[0].nbytes])


def test_it_imports_neither_torch_nor_zstandard() -> None:
    """A RAG backend installs the base dependencies only."""
    probe = "import sys, kvclient.reader.chunk; assert not {'torch', 'zstandard', 'kvworker', 'redis'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)


def test_arrays_are_float32_in_the_shape_of_the_group(encode: Encode) -> None:
    manifest, data = first_part(encode("kivi4"))
    k, v = decode_part(manifest, 0, data)
    assert (k.dtype, k.shape, v.shape) == (np.float32, (2, 2, 9, 16), (2, 2, 9, 24))


def test_a_packed_chunk_without_the_package_names_the_extra(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, data = first_part(encode("lossless"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kv-larder\[store\]'"):
        decode_part(manifest, 0, data)


def test_an_unknown_codec_is_unsupported(encode: Encode) -> None:
    manifest, data = first_part(encode("raw"))
    codec = replace(manifest.codec, stages=(replace(manifest.codec.stages[0], name="gzip"),))
    with pytest.raises(UnsupportedError, match="one of raw, exponent_split, int8, "):
        decode_part(replace(manifest, codec=codec), 0, data)


def test_an_unknown_parameter_is_unsupported(encode: Encode) -> None:
    manifest, data = first_part(encode("kivi4"))
    codec = replace(manifest.codec, stages=(replace(manifest.codec.stages[0], params=(("bits", 5), ("group", 32))),))
    with pytest.raises(UnsupportedError, match="'bits': 5"):
        decode_part(replace(manifest, codec=codec), 0, data)


def test_fields_of_another_codec_are_refused(encode: Encode) -> None:
    manifest, data = first_part(encode("raw"))
    with pytest.raises(FormatError, match=r"needs a field k\.codes"):
        decode_part(replace(manifest, codec=find_codec("int8").spec), 0, data)


def test_a_part_of_another_length_is_refused(encode: Encode) -> None:
    manifest, data = first_part(encode("raw"))
    with pytest.raises(FormatError, match="got 1 B"):
        decode_part(manifest, 0, data[:1])


def test_a_part_that_is_not_there_is_an_error(encode: Encode) -> None:
    manifest, data = first_part(encode("raw"))
    with pytest.raises(InvalidInputError, match="parts 0 to 1"):
        decode_part(manifest, 2, data)


@pytest.mark.parametrize(("scale", "expected"), [(float("nan"), "nan"), (float("inf"), "inf"), (3e38, "inf")])
def test_a_scale_that_lies_decodes_to_what_torch_decodes(encode: Encode, scale: float, expected: str) -> None:
    """No writer of ours stores such a scale; numpy must not warn about it either, which would fail this run."""
    manifest, data = first_part(encode("int8"))
    field = manifest.parts[0].fields[1]
    n_scales = field.nbytes // 4
    lying = data[: field.offset] + np.full(n_scales, scale, "<f4").tobytes() + data[field.offset + field.nbytes :]
    k, _ = decode_part(manifest, 0, lying)
    np.testing.assert_array_equal(k, torch_decode_part(manifest, 0, lying).k.float().numpy())
    assert expected in {str(value) for value in np.abs(k).ravel()}
