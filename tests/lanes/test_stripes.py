"""One chunk over several TCP connections: the same bytes, and what happens when a connection, or the chunk, is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvclient.lanes import tcp
from kvclient.lanes.connections import Connections
from kvclient.lanes.frames import Kind, pack_share, parse_share
from kvclient.lanes.put_frames import NAME_NBYTES, Lent, pack_lent, pack_put_lent
from kvclient.lanes.share import MAX_STRIPES, MIN_PIECE_NBYTES, Share
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvstore.core.api import PutNote
from kvstore.core.errors import ConfigError, CorruptError, FormatError
from kvstore.server.grpc_server import RpcServer
from kvstore.server.service import StoreService
from tests.lanes.raw import greeted, soon, until
from tests.server.chunks import key, make_blob, make_service
from tests.server.raw import body_of, header_of
from tests.server.serving import TOKENS, serving
from tests.server.ways import parts_of, read, read_parts

LARGE = make_blob(part_nbytes=700_001)
SMALL = make_blob(seed=1, part_nbytes=1000)


@pytest.fixture
def service() -> Iterator[StoreService]:
    """A store with a large and a small chunk."""
    made = make_service()
    for blob in (LARGE, SMALL):
        made.bind("alpha").put(blob, PutNote())
    yield made
    made.close()


@pytest.fixture
def server(service: StoreService) -> Iterator[RpcServer]:
    """A server with every lane."""
    with serving(service) as running:
        yield running


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Share]:
    """Have chunks of 64 KiB for each connection travel by several, and note which shares are asked for."""
    shares: list[Share] = []

    def noting(chunk: object, share: Share) -> bytes:
        shares.append(share)
        return pack_share(chunk, share)  # type: ignore[arg-type]

    monkeypatch.setattr(tcp, "STRIPE_NBYTES", 64 << 10)
    monkeypatch.setattr(tcp, "pack_share", noting)
    return shares


@pytest.fixture(autouse=True)
def lent(monkeypatch: pytest.MonkeyPatch) -> list[Share]:
    """Note which shares of a put are sent by other connections than its own."""
    shares: list[Share] = []

    def noting(one: Lent) -> bytes:
        shares.append(one.share)
        return pack_lent(one)

    monkeypatch.setattr(tcp, "pack_lent", noting)
    return shares


@contextmanager
def striped(server: RpcServer, stripes: int) -> Iterator[RemoteStore]:
    """Connect with a client that reads large chunks over so many connections."""
    remote = RemoteStore(server.address, TOKENS["alpha"], timeout_s=10.0, retry=Retry(attempts=1), lane="tcp", stripes=stripes)
    try:
        yield remote
    finally:
        remote.close()


@pytest.mark.parametrize("stripes", [2, 3, MAX_STRIPES])
def test_a_large_chunk_behind_another_comes_in_shares_as_it_is(server: RpcServer, asked: list[Share], stripes: int) -> None:
    """The first tells how large chunks are."""
    with striped(server, stripes) as remote:
        assert [read(remote, LARGE) == parts_of(LARGE) for _ in range(3)] == [True] * 3
    assert [share.index for share in asked] == [*range(stripes)] * 2


def test_one_stripe_asks_for_whole_chunks(server: RpcServer, asked: list[Share]) -> None:
    """As on a loopback, where nothing else is faster."""
    with striped(server, 1) as remote:
        assert read(remote, LARGE) == read(remote, LARGE) == parts_of(LARGE)
    assert not asked


def test_a_batch_is_one_request(server: RpcServer, asked: list[Share]) -> None:
    """Its chunks follow each other on one connection."""
    with striped(server, 2) as remote:
        read(remote, LARGE)
        readers = remote.get_batch([key(LARGE), key(SMALL)])
        assert [read_parts(reader) for reader in readers] == [parts_of(LARGE), parts_of(SMALL)]
    assert not asked


def test_a_small_chunk_behind_large_ones_comes_as_it_is_and_ends_the_shares(server: RpcServer, asked: list[Share]) -> None:
    """Its shares are the first pieces and nothing."""
    with striped(server, 2) as remote:
        assert read(remote, LARGE) == parts_of(LARGE)
        assert [read(remote, SMALL) == parts_of(SMALL) for _ in range(2)] == [True, True]
    assert len(asked) == 2


def test_a_miss_behind_large_chunks_is_a_miss(server: RpcServer) -> None:
    """Though every connection is told so."""
    with striped(server, 3) as remote:
        read(remote, LARGE)
        assert remote.get(key(make_blob(seed=9))) is None


def test_a_chunk_comes_over_the_connections_that_are_free(server: RpcServer, asked: list[Share]) -> None:
    """Nobody waits for more of them while holding some, since two who did would wait for each other."""
    with striped(server, MAX_STRIPES) as remote:
        read(remote, LARGE)
        first = remote.get_batch([key(LARGE), key(LARGE)])  # which keeps its connection until it is read
        assert read(remote, LARGE) == parts_of(LARGE)
        assert {share.count for share in asked} == {MAX_STRIPES - 1}
        for reader in first:
            assert read_parts(reader) == parts_of(LARGE)


def test_a_chunk_that_is_closed_half_read_gives_its_connections_up(server: RpcServer) -> None:
    """And the next read makes new ones."""
    with striped(server, 3) as remote:
        read(remote, LARGE)
        reader = remote.get(key(LARGE))
        assert reader is not None
        first = bytes(reader.part(0))
        reader.close()
        assert (first, read(remote, LARGE)) == (parts_of(LARGE)[0], parts_of(LARGE))


def test_a_share_that_is_no_share_is_refused_and_the_connection_goes_on(server: RpcServer) -> None:
    """Its index is not within its count."""
    with greeted(server, "tcp") as frames:
        frames.send(Kind.GET_SHARE, pack_share(key(SMALL), Share(2, 2, MIN_PIECE_NBYTES)), soon())
        with pytest.raises(FormatError, match="share 2 of 2"):
            frames.expect(Kind.FOUND, soon())
        frames.send(Kind.GET_SHARE, pack_share(key(SMALL), Share(0, 1, MIN_PIECE_NBYTES)), soon())
        assert frames.expect(Kind.FOUND, soon())[1] == len(SMALL)


NEW = make_blob(2, part_nbytes=700_001)


@pytest.mark.parametrize("stripes", [2, 3, MAX_STRIPES])
def test_a_large_chunk_is_put_in_shares(server: RpcServer, lent: list[Share], stripes: int) -> None:
    """The first by the connection that is told whether it is stored."""
    with striped(server, stripes) as remote:
        receipts = [remote.put(NEW, PutNote("book")) for _ in range(2)]
        assert [receipt.stored for receipt in receipts] == [True, False]
        assert read(remote, NEW) == parts_of(NEW)
    assert [share.index for share in lent] == [*range(1, stripes)] * 2


@pytest.mark.parametrize(("stripes", "blob"), [(1, NEW), (2, make_blob(3, part_nbytes=10_000))], ids=["one stripe", "a small chunk"])
def test_what_gains_nothing_is_put_by_one_connection(server: RpcServer, lent: list[Share], stripes: int, blob: bytearray) -> None:
    """As on a loopback."""
    with striped(server, stripes) as remote:
        assert remote.put(blob, PutNote()).stored
        assert read(remote, blob) == parts_of(blob)
    assert not lent


def test_a_put_takes_the_connections_that_are_free(server: RpcServer, lent: list[Share]) -> None:
    """And waits for none of the others."""
    with striped(server, MAX_STRIPES) as remote:
        reading = remote.get_batch([key(LARGE), key(LARGE)])  # which keeps its connection until it is read
        assert remote.put(NEW, PutNote()).stored
        assert {share.count for share in lent} == {MAX_STRIPES - 1}
        for reader in reading:
            assert read_parts(reader) == parts_of(LARGE)


def test_a_damaged_put_in_shares_is_refused_and_the_next_one_is_stored(service: StoreService, server: RpcServer) -> None:
    """A connection that was lent to the first is not in the middle of anything."""
    damaged = bytearray(NEW)
    damaged[-1] ^= 1
    with striped(server, 3) as remote:
        with pytest.raises(CorruptError):
            remote.put(damaged, PutNote())
        assert service.bind("alpha").get(key(NEW)) is None
        assert remote.put(NEW, PutNote()).stored
        assert read(remote, NEW) == parts_of(NEW)
    assert server.budget.lent_bytes == 0


NAME = bytes(NAME_NBYTES)


def lend(index: int, count: int = 2) -> Lent:
    """Return a share of a put."""
    return Lent(NAME, Share(index, count, MIN_PIECE_NBYTES))


def test_what_is_lent_is_found_whichever_comes_first(server: RpcServer) -> None:
    """Connections are served by threads of their own."""
    header, body = header_of(SMALL), body_of(SMALL)
    with greeted(server, "tcp") as own, greeted(server, "tcp") as other:
        own.send(Kind.PUT_LENT, pack_put_lent(lend(0), PutNote(), header), soon(), body_nbytes=len(body))
        own.send_body(body, soon())  # shorter than a piece, so all of it comes by the put's own
        other.send(Kind.LEND, pack_lent(lend(1)), soon())
        assert own.expect(Kind.STORED, soon())


def test_what_is_lent_twice_ends_the_second(server: RpcServer) -> None:
    """Nobody could tell which of both brings the pieces."""
    with greeted(server, "tcp") as first, greeted(server, "tcp") as second:
        for frames in (first, second):
            frames.send(Kind.LEND, pack_lent(lend(1)), soon())
        until(lambda: [first.is_sound(), second.is_sound()].count(False) == 1)


def test_nobody_lends_to_a_put_of_another_tenant(server: RpcServer) -> None:
    """The name of a put counts within its tenant."""
    header, body = header_of(SMALL), body_of(SMALL)
    with greeted(server, "tcp", "beta") as stranger, greeted(server, "tcp") as other, greeted(server, "tcp") as own:
        for frames in (stranger, other):
            frames.send(Kind.LEND, pack_lent(lend(1)), soon())
        own.send(Kind.PUT_LENT, pack_put_lent(lend(0), PutNote(), header), soon(), body, len(body))
        assert own.expect(Kind.STORED, soon())
        assert stranger.is_sound()


def test_a_put_lends_nothing_to_itself(server: RpcServer) -> None:
    """Share 0 comes by its own connection."""
    with greeted(server, "tcp") as frames:
        frames.send(Kind.LEND, pack_lent(lend(0)), soon())
        until(lambda: not frames.is_sound())


def test_a_put_that_breaks_off_ends_what_was_lent_to_it(server: RpcServer) -> None:
    """Nobody knows what else would come by it."""
    with greeted(server, "tcp") as own, greeted(server, "tcp") as other:
        other.send(Kind.LEND, pack_lent(lend(1)), soon())
        own.send(Kind.PUT_LENT, pack_put_lent(lend(0), PutNote(), header_of(LARGE)), soon(), body_nbytes=len(body_of(LARGE)))
        own.send_body(body_of(LARGE)[:MIN_PIECE_NBYTES], soon())
        until(lambda: server.budget.lent_bytes > 0)
        own.close()
        other.close()
        until(lambda: server.budget.lent_bytes == 0)


@pytest.mark.parametrize("share", [Share(0, 0, 1 << 20), Share(0, MAX_STRIPES + 1, 1 << 20), Share(0, 1, MIN_PIECE_NBYTES - 1)], ids=str)
def test_a_share_out_of_bounds_is_a_format_error(share: Share) -> None:
    """So that no peer can ask for a million pieces."""
    with pytest.raises(FormatError):
        parse_share(pack_share(key(SMALL), share))


def test_a_share_that_was_changed_on_the_way_is_damage() -> None:
    """One flipped bit."""
    head = bytearray(pack_share(key(SMALL), Share(0, 2, 1 << 20)))
    head[100] ^= 1
    with pytest.raises(CorruptError):
        parse_share(bytes(head))


@given(st.integers(0, 10_000), st.integers(1, MAX_STRIPES), st.integers(1, 3000))
def test_shares_are_every_byte_once_and_in_turn(nbytes: int, count: int, piece_nbytes: int) -> None:
    """The reader takes the first piece of each, then the second of each."""
    shares = [Share(index, count, piece_nbytes) for index in range(count)]
    pieces = sorted(piece for share in shares for piece in share.pieces(nbytes))
    covered = [byte for start, end in pieces for byte in range(start, end)]
    assert covered == list(range(nbytes))
    assert sum(share.nbytes(nbytes) for share in shares) == nbytes
    assert [start for start, _ in pieces] == list(range(0, nbytes, piece_nbytes))


@pytest.mark.parametrize("stripes", [0, MAX_STRIPES + 1])
def test_a_number_of_stripes_that_can_not_be_is_refused(stripes: int) -> None:
    """With the numbers that can."""
    with pytest.raises(ConfigError, match=f"1 to {MAX_STRIPES}"):
        RemoteStore("127.0.0.1:1", "token", stripes=stripes)


def test_who_takes_only_what_is_free_does_not_wait() -> None:
    """Of two connections, the third is none."""

    class Idle:
        is_closed = owes_answer = False

        def is_sound(self) -> bool:
            return True

        def close(self) -> None:
            self.is_closed = True

    connections: Connections[Idle] = Connections(lambda deadline: Idle(), 2)
    taken = [connections.take_free(soon()) for _ in range(3)]
    assert [each is not None for each in taken] == [True, True, False]
    assert isinstance(taken[0], Idle)
    connections.give(taken[0])
    assert connections.take_free(soon()) is taken[0]


def test_a_chunk_travels_by_fewer_connections_where_there_is_little_for_each(server: RpcServer, lent: list[Share]) -> None:
    """Of 64 KiB each, three for 200 KB."""
    blob = make_blob(4, n_parts=1, part_nbytes=200_000)
    with striped(server, MAX_STRIPES) as remote:
        assert remote.put(blob, PutNote()).stored
        assert read(remote, blob) == parts_of(blob)
    assert {share.count for share in lent} == {3}
