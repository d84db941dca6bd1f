"""A frame from outside never makes more bytes than its field has."""

from __future__ import annotations

import resource
import sys

import pytest
import zstandard

from kvstore.codecs import find_byte_stage
from kvstore.codecs.raw import Raw
from kvstore.codecs.zstd import Zstd
from kvstore.core.discovery import known_names
from kvstore.core.errors import FormatError, MissingExtraError, UnsupportedError

TEXT = b"keys and values " * 64


@pytest.mark.parametrize("name", known_names("kvstore.codecs"))
@pytest.mark.parametrize("data", [b"\0", TEXT, bytes(range(256))])
def test_unpacking_restores_what_was_packed(name: str, data: bytes) -> None:
    stage = find_byte_stage(name)()
    assert bytes(stage.unpack(stage.pack(data), len(data))) == data


@pytest.mark.parametrize("name", ["gzip", "", "..", "zstd.py"])
def test_an_unknown_byte_stage_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="known are deflate, lz4, planes, "):
        find_byte_stage(name)


def test_a_frame_is_refused_before_it_fills_memory() -> None:
    """33 KB of frame would unpack to a gibibyte."""
    compressor = zstandard.ZstdCompressor(level=3).compressobj(size=1 << 30)
    piece = bytes(1 << 20)
    bomb = b"".join(compressor.compress(piece) for _ in range(1 << 10)) + compressor.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match="declares 1073741824 B where 1024 B belong"):
        Zstd().unpack(bomb, 1024)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def lying_frame(declared: int) -> bytes:
    """Return a frame of TEXT whose header declares another size (RFC 8878, 3.1.1.1: a 2-byte size is stored less 256)."""
    frame = bytearray(zstandard.ZstdCompressor(write_checksum=False).compress(TEXT))
    assert frame[4] >> 5 == 0b011, "single segment, 2-byte content size"
    frame[5:7] = (declared - 256).to_bytes(2, "little")
    return bytes(frame)


@pytest.mark.parametrize("declared", [len(TEXT) // 2, len(TEXT) * 2])
def test_a_frame_that_holds_another_size_than_it_declares_is_refused(declared: int) -> None:
    with pytest.raises(FormatError):
        Zstd().unpack(lying_frame(declared), declared)


def frame_without_size() -> bytes:
    """Return a frame that declares no content size."""
    return zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)


FRAME = zstandard.ZstdCompressor().compress(TEXT)


@pytest.mark.parametrize("data", [b"", b"\0" * 32, FRAME[:-1], FRAME + b"\0", FRAME + FRAME, FRAME[:8], frame_without_size()])
def test_what_is_not_exactly_one_sized_frame_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Zstd().unpack(data, len(TEXT))


def test_raw_bytes_of_another_length_are_refused() -> None:
    with pytest.raises(FormatError, match="should have 3 B, got 2 B"):
        Raw().unpack(b"ab", 3)


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kv-larder\[store\]'"):
        Zstd().pack(TEXT)
