"""Byte stages: every byte comes back, frames from outside are checked before anything is made of them, and sizes are the method file's."""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Callable

import pytest
import torch

from kvkernels import exponent_split
from kvstore.codecs import ByteStage, find_byte_stage
from kvstore.codecs.deflate import Deflate
from kvstore.codecs.lz4 import Lz4
from kvstore.codecs.planes import Planes
from kvstore.codecs.rans import Rans
from kvstore.codecs.top16 import Top16
from kvstore.core.blob import parse_header
from kvstore.core.discovery import known_names
from kvstore.core.errors import FormatError, InvalidInputError, MissingExtraError
from kvworker.chunk import KVChunk
from kvworker.codec.specs import find_codec
from tests.codecs.synth import layer
from tests.contracts.codecs import encode, identity_for

NAMES = [name for name in known_names("kvstore.codecs") if name != "raw"]
each_stage = pytest.mark.parametrize("name", NAMES)


def stage_of(name: str) -> ByteStage:
    """Return a stage with its defaults."""
    return find_byte_stage(name)()


def skewed(nbytes: int, seed: int = 0) -> bytes:
    """Return bytes of which few values are common and some are rare, as exponents are."""
    draw = random.Random(seed)
    return bytes(min(255, 100 + int(draw.expovariate(0.7))) for _ in range(nbytes))


@pytest.fixture(scope="module")
def planes() -> tuple[bytes, bytes, bytes]:
    """Return synthetic KV of 512 tokens in bfloat16: its bytes, and those of its exponents and of the rest."""
    made = layer(0, 512)
    x = torch.cat([made.k.flatten(), made.v.flatten()]).bfloat16()
    exponent, rest = exponent_split.encode(x.view(1, -1, 128))
    return x.view(torch.uint8).numpy().tobytes(), exponent.numpy().tobytes(), rest.numpy().tobytes()


@pytest.mark.parametrize("nbytes", [1, 2, 3, 31, 257, 4099])
@each_stage
def test_every_byte_comes_back(name: str, nbytes: int) -> None:
    """Odd sizes: the last byte has no partner, the last item is not whole."""
    stage, data = stage_of(name), skewed(nbytes)
    assert bytes(stage.unpack(stage.pack(data), nbytes)) == data


@each_stage
def test_noise_comes_back(name: str) -> None:
    """Every value as often as any other, so nothing is saved."""
    stage, data = stage_of(name), random.Random(1).randbytes(5000)
    assert bytes(stage.unpack(stage.pack(data), len(data))) == data


@each_stage
def test_views_are_packed_like_bytes(name: str) -> None:
    """A pipeline hands over the memory of tensors."""
    data = skewed(1000)
    assert stage_of(name).pack(memoryview(bytearray(data))) == stage_of(name).pack(data)


@each_stage
def test_a_frame_cut_anywhere_is_refused(name: str) -> None:
    stage = stage_of(name)
    frame = bytes(stage.pack(skewed(400)))
    for length in range(len(frame)):
        with pytest.raises(FormatError):
            stage.unpack(frame[:length], 400)


@each_stage
def test_a_frame_of_another_size_is_refused(name: str) -> None:
    stage = stage_of(name)
    frame = bytes(stage.pack(skewed(400)))
    for claimed in (1, 300, 402, 4000):
        with pytest.raises(FormatError):
            stage.unpack(frame, claimed)


@each_stage
def test_bytes_behind_a_frame_are_refused(name: str) -> None:
    stage = stage_of(name)
    with pytest.raises(FormatError):
        stage.unpack(bytes(stage.pack(skewed(400))) + b"\0", 400)


@each_stage
def test_changed_frames_give_bytes_of_the_size_or_are_refused(name: str) -> None:
    """Digests find such frames first; whoever gets here with one must not crash or fill memory."""
    stage, draw = stage_of(name), random.Random(2)
    frame = bytearray(stage.pack(skewed(600)))
    for _ in range(200):
        changed = bytearray(frame)
        changed[draw.randrange(len(frame))] ^= 1 << draw.randrange(8)
        try:
            assert len(stage.unpack(bytes(changed), 600)) == 600
        except FormatError:
            continue


def test_a_deflate_stream_is_not_unpacked_beyond_its_field() -> None:
    """A stream of 1 KB that holds a mebibyte stops one byte behind the field."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(1 << 20)) + packer.flush()
    with pytest.raises(FormatError, match="are not one DEFLATE stream of 100 B"):
        Deflate().unpack(bomb, 100)


@pytest.mark.parametrize("places", [[3, 3], [5, 4], [0, 64]])
def test_escapes_that_do_not_ascend_within_the_field_are_refused(places: list[int]) -> None:
    head = bytes(range(16)) + bytes(32)
    escapes = b"".join(place.to_bytes(4, "little") + b"\7" for place in places)
    with pytest.raises(FormatError, match="not ascending places"):
        Top16().unpack(head + escapes, 64)


def test_a_rans_table_that_is_none_is_refused() -> None:
    frame = bytearray(Rans().pack(skewed(400)))
    frame[1:3] = b"\0\0"
    with pytest.raises(FormatError, match="table of a rans frame"):
        Rans().unpack(bytes(frame), 400)


def test_rans_codes_long_fields_block_by_block() -> None:
    data = skewed(1 << 12) * 257
    packed = Rans().pack(data)
    assert len(packed) < len(data) / 2
    assert bytes(Rans().unpack(packed, len(data))) == data


def test_top16_stays_near_half_where_escapes_are_few(planes: tuple[bytes, bytes, bytes]) -> None:
    """C E6 on synth-v1: sixteen exponents cover 99.96 %, and bfloat16 KV takes 1.332 times less."""
    raw, exponent, rest = planes
    packed = len(Top16().pack(exponent))
    n_escapes = (packed - 16 - len(exponent) // 2) / 5
    assert n_escapes / len(exponent) < 0.0012
    assert len(raw) / (packed + len(rest)) == pytest.approx(1.332, rel=0.005)


def test_a_field_that_top16_makes_larger_stays_raw() -> None:
    """Adversarial exponents: the worst case is a raw field, not one and a half of it."""
    identity, pipeline = identity_for((1, 1, 16, 16), dtype="bfloat16"), find_codec("exponent_split+top16")
    bits = torch.randint(-(2**15), 2**15, (1, 1, 300, 16), dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    blob = encode(pipeline, identity, (KVChunk(bits.view(torch.bfloat16), bits.view(torch.bfloat16)),))
    assert {field.packing for field in parse_header(blob).manifest.parts[0].fields} == {"raw"}


def test_exponents_pack_as_the_method_file_says(planes: tuple[bytes, bytes, bytes]) -> None:
    """C E6 on synth-v1: the exponent plane behind zlib makes KV 1.42 times smaller, zlib on raw bytes 1.25, LZ4 on them nothing; entropy
    allows 1.48 at most."""
    raw, exponent, rest = planes

    def whole(stage: ByteStage) -> float:
        return len(raw) / (len(stage.pack(exponent)) + len(rest))

    assert whole(Deflate()) == pytest.approx(1.42, rel=0.01)
    assert len(raw) / len(Deflate().pack(raw)) == pytest.approx(1.25, rel=0.02)
    assert len(raw) / len(Lz4().pack(raw)) == pytest.approx(1.0, rel=0.01)
    assert 1.46 < whole(Rans()) < 1.49


def test_planes_pack_floats_better_than_their_bytes_in_a_row(planes: tuple[bytes, bytes, bytes]) -> None:
    raw = planes[0]
    assert len(Planes(width=2).pack(raw)) < 0.9 * len(find_byte_stage("zstd")().pack(raw))


@pytest.mark.parametrize(("name", "params"), [("deflate", {"level": 0}), ("planes", {"width": 3}), ("planes", {"level": 20})])
def test_parameters_out_of_range_are_refused(name: str, params: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match="must be"):
        find_byte_stage(name)(**params)


def test_without_the_lz4_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kv-larder\[lz4\]'"):
        Lz4().pack(b"x")


DATA = bytes([120, 121, 120, 119, 120, 120, 122, 3]) * 24 + b"\x78\x00\x78"
RELEASED = {
    "deflate": "aba8ac28afa8a862ae18aa34430500",
    "lz4": "8f7879787778787a030800a3507a03780078",
    "planes": "28b52ffd20c3950000487878787a797778030002000926b24f8e08",
    "rans": (
        "7a150001000100ea01010001000100010001000100010001000100010001000100010001000100010001000100010001000100010001000100010001"
        "000100010001000100010001000100010001000100010001000100010001000100010001000100010001000100010001000100010001000100010001"
        "000100010001000100010001000100010001000100010001000100010001000100010001000100010001000100010001000100010001000100010001"
        "0001000100010001000100010001000100010001000100010001000100010001000100010001000100010001000100010001000100010001000100ea"
        "01ce07ea01ea013600000045d70900da1b202cb1ab88f9bb39841908bd86ad17cd4605e08b7ceaba87367986f5d589ed18f3e03b31e951c60190b1d2"
        "41ab61331e"
    ),
    "top16": (
        "780377797a0001020405060708090a0b3020001430200014302000143020001430200014302000143020001430200014302000143020001430200014"
        "302000143020001430200014302000143020001430200014302000143020001430200014302000143020001430200014302000145000"
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_frames_unpack_to_what_was_packed(name: str) -> None:
    """Bytes that were ever stored stay readable."""
    assert bytes(stage_of(name).unpack(bytes.fromhex(RELEASED[name]), len(DATA))) == DATA


@pytest.mark.parametrize("name", ["top16", "rans"])
def test_frames_of_our_own_are_the_same_everywhere(name: str) -> None:
    """Those of libraries may differ between their versions."""
    assert bytes(stage_of(name).pack(DATA)).hex() == RELEASED[name]


def read_top16(frame: bytes, nbytes: int) -> bytes:
    """Unpack a frame as the format's page says, one byte at a time."""
    table, codes, escapes = frame[:16], frame[16 : 16 + -(-nbytes // 2)], frame[16 + -(-nbytes // 2) :]
    out = bytearray(table[codes[n // 2] >> 4 * (n % 2) & 15] for n in range(nbytes))
    for at in range(0, len(escapes), 5):
        out[int.from_bytes(escapes[at : at + 4], "little")] = escapes[at + 4]
    return bytes(out)


def read_rans(frame: bytes, nbytes: int) -> bytes:
    """Unpack a frame of one stream as the format's page says, one symbol at a time."""
    n_kinds = frame[0] + 1
    words = [int.from_bytes(frame[at : at + 2], "little") for at in range(1, len(frame) - 1, 2)]
    frequencies, starts = words[:n_kinds], [sum(words[:s]) for s in range(n_kinds)]
    stream, n_lanes, out = frame[1 + 2 * n_kinds + 4 :], -(-nbytes // 1024), bytearray()
    x = [int.from_bytes(stream[4 * lane : 4 * lane + 4], "little") for lane in range(n_lanes)]
    rest = iter(int.from_bytes(stream[at : at + 2], "little") for at in range(4 * n_lanes, len(stream), 2))
    for place in range(nbytes):
        lane, r = place % n_lanes, x[place % n_lanes] % 4096
        symbol = next(s for s in range(n_kinds) if starts[s] <= r < starts[s] + frequencies[s])
        x[lane] = frequencies[symbol] * (x[lane] // 4096) + r - starts[symbol]
        if x[lane] < 65536:
            x[lane] = x[lane] * 65536 + next(rest)
        out.append(symbol)
    assert x == [65536] * n_lanes
    return bytes(out)


@pytest.mark.parametrize(("name", "read"), [("top16", read_top16), ("rans", read_rans)])
@pytest.mark.parametrize("nbytes", [1, 33, 2500])
def test_a_reader_written_from_the_format_reads_the_same(name: str, read: Callable[[bytes, int], bytes], nbytes: int) -> None:
    assert read(bytes(stage_of(name).pack(skewed(nbytes))), nbytes) == skewed(nbytes)
