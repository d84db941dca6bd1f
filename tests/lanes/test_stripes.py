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
from kvclient.lanes.share import MAX_STRIPES, MIN_PIECE_NBYTES, Share
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvstore.core.api import PutNote
from kvstore.core.errors import ConfigError, CorruptError, FormatError
from kvstore.server.grpc_server import RpcServer
from kvstore.server.service import StoreService
from tests.lanes.raw import greeted, soon
from tests.server.chunks import key, make_blob, make_service
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
