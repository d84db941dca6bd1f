"""Encryption at rest: what lies in a tier says nothing, and can't be changed or moved."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.core.errors import ConfigError, CorruptError, FormatError, IdentityError
from kvstore.core.pool import BufferPool
from kvstore.store.disk import DiskTier
from kvstore.store.encrypted import EncryptedTier
from kvstore.store.key_ring import KeyRing, parse_key_ring, read_key_ring
from kvstore.store.memory import MemoryTier
from kvstore.store.record import record_head
from kvstore.store.results import Miss, Opened, StoreSettings
from kvstore.store.sealed import PIECE_NBYTES, SEALED, START, TAG_NBYTES, plain_nbytes, sealed_nbytes
from kvstore.store.tier import Listed
from kvstore.store.tiered import TieredStore
from tests.store.chunks import make_chunk, make_record
from tests.store.reading import read_whole

DAMAGE = (CorruptError, FormatError, IdentityError)
OLD, NEW = bytes(range(32)), bytes(range(1, 33))
RING = KeyRing({"old": OLD}, "old")
BOTH = KeyRing({"old": OLD, "new": NEW}, "new")


class Rings:
    """A ring that can be changed under a tier."""

    def __init__(self, ring: KeyRing = RING) -> None:
        self.ring = ring

    def __call__(self) -> KeyRing:
        return self.ring


@pytest.fixture
def rings() -> Rings:
    """The keys of the tier."""
    return Rings()


@pytest.fixture
def outer() -> Iterator[MemoryTier]:
    """What holds the ciphertext."""
    tier = MemoryTier(16 << 20)
    yield tier
    tier.close()


@pytest.fixture
def tier(outer: MemoryTier, rings: Rings) -> EncryptedTier:
    """A tier that encrypts."""
    return EncryptedTier(outer, rings, BufferPool(0))


def stored(outer: MemoryTier, key: bytes) -> bytes:
    """Return what lies in the outer tier."""
    return read_whole(outer, key)


def replace_stored(outer: MemoryTier, key: bytes, data: bytes) -> None:
    """Put something else there."""
    outer.delete(key)
    outer.put(key, [data])


def test_nothing_of_a_record_lies_in_the_tier(tier: EncryptedTier, outer: MemoryTier) -> None:
    """Not its bytes, nor its source, nor which chunk it is."""
    key, meta, blob = make_chunk(1, 4096, source="secret/plan.txt")
    tier.put(key, [record_head(key, meta, len(blob)) + blob])
    data = stored(outer, key)
    assert b"secret/plan.txt" not in data
    assert meta.chunk.to_bytes().hex().encode() not in data
    assert not any(blob[at : at + 16] in data for at in range(0, len(blob) - 16, 16))


def test_the_same_record_is_never_encrypted_the_same_way_twice(tier: EncryptedTier, outer: MemoryTier) -> None:
    """A nonce that is used again gives both plaintexts away."""
    key, record = make_record(1, 100)
    seen = set()
    for _ in range(3):
        tier.put(key, [record])
        seen.add(stored(outer, key)[SEALED.blob_offset :])
        tier.delete(key)
    assert len(seen) == 3


@pytest.mark.parametrize("nbytes", [0, 1, 100, PIECE_NBYTES - 1, PIECE_NBYTES, PIECE_NBYTES + 1, 3 * PIECE_NBYTES])
def test_the_length_of_a_record_is_known_from_outside(nbytes: int) -> None:
    """So nothing has to be decrypted to answer a lookup."""
    assert plain_nbytes(sealed_nbytes(nbytes)) == nbytes


@pytest.mark.parametrize("nbytes", [0, START - 1, START + 1, START + TAG_NBYTES, START + PIECE_NBYTES + TAG_NBYTES + 1])
def test_a_length_that_no_record_has_is_none(nbytes: int) -> None:
    """Such as that of a record in plain text."""
    assert plain_nbytes(nbytes) is None


def test_no_flipped_bit_is_ever_read(tier: EncryptedTier, outer: MemoryTier) -> None:
    """Each byte of the outer record once, whichever bit."""
    key, record = make_record(1, 100)
    tier.put(key, [record])
    sound = stored(outer, key)
    for at in range(len(sound)):
        damaged = bytearray(sound)
        damaged[at] ^= 1 << (at % 8)
        replace_stored(outer, key, bytes(damaged))
        try:
            found = read_whole(tier, key) if tier.get(key) is not None else None
        except DAMAGE:
            continue
        assert found is None, f"byte {at}"


def swap(outer: MemoryTier, one: bytes, other: bytes) -> None:
    """Have two records change places, each with the head that its place wants."""
    sealed = {key: stored(outer, key)[SEALED.blob_offset :] for key in (one, other)}
    for key, body in ((one, sealed[other]), (other, sealed[one])):
        replace_stored(outer, key, record_head(key, SEALED, len(body)) + body)


def test_records_that_changed_places_are_not_read(tier: EncryptedTier, outer: MemoryTier) -> None:
    """Though whoever swapped them made the heads right."""
    (one, record), (other, another) = make_record(1, 100), make_record(2, 100)
    tier.put(one, [record])
    tier.put(other, [another])
    swap(outer, one, other)
    for key in (one, other):
        with pytest.raises(CorruptError, match="does not decrypt"):
            read_whole(tier, key)


def test_pieces_that_changed_places_are_not_read(tier: EncryptedTier, outer: MemoryTier) -> None:
    """Within one record, too."""
    key, record = make_record(1, 3 * PIECE_NBYTES)
    tier.put(key, [record])
    data, step = stored(outer, key), PIECE_NBYTES + TAG_NBYTES
    first, second = data[START : START + step], data[START + step : START + 2 * step]
    replace_stored(outer, key, data[:START] + second + first + data[START + 2 * step :])
    with pytest.raises(CorruptError, match="piece 0"):
        read_whole(tier, key)


def test_the_first_part_is_there_before_the_last_one_arrived(tier: EncryptedTier, outer: MemoryTier) -> None:
    """Encryption does not end the streaming of layers: a piece that is damaged behind them does no harm to them."""
    key, record = make_record(1, 3 * PIECE_NBYTES)
    tier.put(key, [record])
    data = bytearray(stored(outer, key))
    data[-1] ^= 1
    replace_stored(outer, key, bytes(data))
    landing = tier.get(key)
    assert landing is not None
    landing.fill(PIECE_NBYTES)
    assert landing.view[:PIECE_NBYTES] == record[:PIECE_NBYTES]
    with pytest.raises(CorruptError):
        landing.fill(landing.nbytes)


def test_a_new_key_encrypts_and_the_old_one_still_decrypts(tier: EncryptedTier, rings: Rings) -> None:
    """So a key is replaced without a gap."""
    (before, record), (after, another) = make_record(1), make_record(2)
    tier.put(before, [record])
    rings.ring = BOTH
    tier.put(after, [another])
    assert (read_whole(tier, before), read_whole(tier, after)) == (record, another)
    rings.ring = KeyRing({"new": NEW}, "new")
    assert tier.get(before) is None
    assert read_whole(tier, after) == another


def test_what_no_key_opens_any_more_is_removed(tier: EncryptedTier, outer: MemoryTier, rings: Rings) -> None:
    """It only takes room."""
    key, record = make_record(1)
    tier.put(key, [record])
    rings.ring = KeyRing({"new": NEW}, "new")
    assert tier.get(key) is None
    assert outer.find([key]) == [None]


def test_another_key_under_the_same_id_is_damage(tier: EncryptedTier, rings: Rings) -> None:
    """Nobody can tell it from a flipped bit."""
    key, record = make_record(1)
    tier.put(key, [record])
    rings.ring = KeyRing({"old": NEW}, "old")
    with pytest.raises(CorruptError, match="does not decrypt"):
        read_whole(tier, key)


def test_a_record_in_plain_text_is_not_read_and_does_not_stay(tier: EncryptedTier, outer: MemoryTier) -> None:
    """What was stored before encryption was asked for."""
    key, record = make_record(1)
    outer.put(key, [record])
    assert tier.get(key) is None
    assert outer.find([key]) == [None]


def test_a_listing_tells_of_the_records_within(tmp_path: Path, rings: Rings) -> None:
    """And takes what can't be read out of sight."""
    disk = DiskTier(tmp_path, 16 << 20, fsync="never")
    tier = EncryptedTier(disk, rings, BufferPool(0))
    (key, meta, blob), (plain_key, plain) = make_chunk(1, 100), make_record(2)
    record = record_head(key, meta, len(blob)) + blob
    tier.put(key, [record])
    disk.put(plain_key, [plain])
    assert list(tier.scan()) == [Listed(key, len(record), meta)]
    assert [listed.key for listed in disk.scan()] == [key]
    rings.ring = KeyRing({"new": NEW}, "new")
    assert list(tier.scan()) == list(disk.scan()) == []
    tier.close()


def test_two_records_never_have_the_same_key() -> None:
    """A storage key is of one tenant, so no two tenants have."""
    one, other = RING.cipher("old", bytes(32)), RING.cipher("old", b"\1" + bytes(31))
    assert one is not None
    assert other is not None
    assert one.encrypt(bytes(12), b"text", None) != other.encrypt(bytes(12), b"text", None)


def open_store(folder: Path, rings: Rings) -> TieredStore:
    """Return a store over memory and an encrypted disk."""
    disk = EncryptedTier(DiskTier(folder, 16 << 20, fsync="never"), rings, BufferPool(0))
    return TieredStore([MemoryTier(1 << 20), disk], StoreSettings(remote_timeout_s=0.2))


def flip_stored_bits(folder: Path) -> None:
    """Damage every record on the disk behind its head."""
    for path in (folder / "records").rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(bytes(data))


def test_a_store_finds_its_encrypted_chunks_again_after_a_restart(tmp_path: Path, rings: Rings) -> None:
    """With all that its index has to know of them."""
    key, meta, blob = make_chunk(1, 1000)
    store = open_store(tmp_path, rings)
    store.put(key, meta, blob)
    store.close()
    again = open_store(tmp_path, rings)
    opened = again.get(key)
    assert isinstance(opened, Opened)
    opened.landing.fill(opened.landing.nbytes)
    assert (bytes(opened.landing.view), opened.meta) == (blob, meta)
    opened.landing.close()
    again.close()


@pytest.mark.parametrize("kind", ["a flipped bit", "another key"])
def test_a_chunk_that_does_not_decrypt_is_a_miss_and_quarantined(tmp_path: Path, rings: Rings, kind: str) -> None:
    """And never an answer, nor an error to whoever asks."""
    key, meta, blob = make_chunk(1, 1000)
    store = open_store(tmp_path, rings)
    store.put(key, meta, blob)
    assert store.drain()
    store.close()
    again = open_store(tmp_path, rings)
    if kind == "another key":
        rings.ring = KeyRing({"old": NEW}, "old")
    else:
        flip_stored_bits(tmp_path)
    assert again.get(key) == Miss("corrupt")
    assert again.counters["quarantined"] == 1
    assert len(list((tmp_path / "quarantine").iterdir())) == 1
    again.close()


def test_a_chunk_whose_key_was_taken_out_is_a_miss(tmp_path: Path, rings: Rings) -> None:
    """And no damage."""
    key, meta, blob = make_chunk(1, 1000)
    store = open_store(tmp_path, rings)
    store.put(key, meta, blob)
    store.close()
    rings.ring = KeyRing({"new": NEW}, "new")
    again = open_store(tmp_path, rings)
    assert isinstance(again.get(key), Miss)
    assert again.counters["quarantined"] == 0
    again.close()


HEX = secrets.token_hex(32)
MALFORMED = {
    "nothing": "",
    "a comment": "# keys\n",
    "no id": HEX,
    "a short key": f"first {HEX[:-1]}",
    "no hex": f"first {'g' * 64}",
    "a long id": f"{'i' * 17} {HEX}",
    "a path as id": f"../first {HEX}",
    "an id twice": f"first {HEX}\nfirst {HEX}",
    "three words": f"first {HEX} newest",
    "too long": "#" * (1 << 20) + "\n",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_of_keys_is_refused_and_not_quoted(text: str) -> None:
    """Half a ring would be half a cache."""
    with pytest.raises(ConfigError, match=r"encryption\.keys_file test") as caught:
        parse_key_ring(text.encode(), "test")
    assert HEX[:16] not in str(caught.value)


def test_the_last_key_of_a_file_is_the_newest(tmp_path: Path) -> None:
    """A new one is appended."""
    file = tmp_path / "keys"
    file.write_text(f"# id key\nfirst {OLD.hex()}\n\nsecond {NEW.hex()}\n")
    file.chmod(0o600)
    assert read_key_ring(file) == KeyRing({"first": OLD, "second": NEW}, "second")
    assert OLD.hex() not in repr(read_key_ring(file))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_of_keys_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """The message says what to run."""
    file = tmp_path / "keys"
    file.write_text(f"first {HEX}\n")
    file.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_key_ring(file)
