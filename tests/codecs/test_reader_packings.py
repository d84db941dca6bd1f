"""The numpy reader's packings agree with the stages that pack, on good frames and on bad ones."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import pytest

from kvclient.reader.packings import PACKINGS, unpack
from kvstore.codecs import find_byte_stage
from kvstore.core.errors import FormatError, KVError, MissingExtraError

each_packing = pytest.mark.parametrize("name", PACKINGS)


def skewed(nbytes: int, seed: int = 0) -> bytes:
    """Return bytes of which few values are common and some are rare, as exponents are."""
    draw = random.Random(seed)
    return bytes(min(255, 100 + int(draw.expovariate(0.7))) for _ in range(nbytes))


def packed(name: str, raw: bytes) -> tuple[dict[str, object], bytes]:
    """Return the parameters of a stage with its defaults, and a frame of it."""
    stage = find_byte_stage(name)()
    return dict(stage.spec.params), bytes(stage.pack(raw))


def outcome(read: Callable[[], object]) -> bytes | type[KVError]:
    """Return the bytes that a reader makes of a frame, or the error's class."""
    try:
        return bytes(read())  # type: ignore[call-overload, no-any-return]
    except KVError as error:
        return type(error)


@each_packing
@pytest.mark.parametrize("nbytes", [1, 2, 3, 17, 1023, 1025, 5000])
def test_every_byte_comes_back(name: str, nbytes: int) -> None:
    raw = skewed(nbytes)
    params, frame = packed(name, raw)
    assert bytes(unpack(name, params, memoryview(frame), nbytes)) == raw  # type: ignore[arg-type]


def test_rans_reads_block_after_block() -> None:
    """Streams hold a MiB each."""
    raw = skewed(4096) * 257
    params, frame = packed("rans", raw)
    assert bytes(unpack("rans", params, memoryview(frame), len(raw))) == raw  # type: ignore[arg-type]


@each_packing
def test_cut_and_longer_frames_are_refused(name: str) -> None:
    raw = skewed(600)
    params, frame = packed(name, raw)
    for bad in (b"", frame[:1], frame[: len(frame) // 2], frame[:-1], frame + b"\0"):
        with pytest.raises(FormatError):
            unpack(name, params, memoryview(bad), len(raw))  # type: ignore[arg-type]


@each_packing
@pytest.mark.parametrize("nbytes", [598, 602, 1200])
def test_a_frame_of_another_size_is_refused(name: str, nbytes: int) -> None:
    params, frame = packed(name, skewed(600))
    with pytest.raises(FormatError):
        unpack(name, params, memoryview(frame), nbytes)  # type: ignore[arg-type]


@each_packing
def test_changed_frames_mean_to_both_readers_the_same(name: str) -> None:
    """Values, or that it is damaged."""
    raw, draw = skewed(300), random.Random(1)
    params, frame = packed(name, raw)
    for _ in range(60):
        bad = bytearray(frame)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        here = outcome(lambda: unpack(name, params, memoryview(bad), 300))  # type: ignore[arg-type]  # noqa: B023
        assert here == outcome(lambda: find_byte_stage(name)().unpack(bytes(bad), 300))  # noqa: B023


@pytest.mark.parametrize("width", [3, 1 << 40, "2", None])
def test_planes_of_a_width_that_no_writer_has_are_refused(width: object) -> None:
    """Parameters come from a manifest."""
    _, frame = packed("planes", skewed(64))
    with pytest.raises(FormatError, match="width of 2, 4 or 8"):
        unpack("planes", {"width": width}, memoryview(frame), 64)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("name", "module", "extra"), [("zstd", "zstandard", "store"), ("planes", "zstandard", "store"), ("lz4", "lz4.block", "lz4")]
)
def test_a_package_that_is_not_there_is_named(name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params, frame = packed(name, skewed(64))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"kv-larder\[{extra}\]"):
        unpack(name, params, memoryview(frame), 64)  # type: ignore[arg-type]
