"""What silent puts of the socket lanes hold: the byte budget, until somebody needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from kvclient.lanes.choice import LaneName
from kvclient.lanes.frames import Kind
from kvclient.retry import Retry
from kvstore.core.api import PutNote
from kvstore.core.errors import CapacityError
from kvstore.server.grpc_server import RpcServer
from tests.lanes.raw import SOCKETS, greeted, soon, until
from tests.server.chunks import make_blob, make_service
from tests.server.raw import body_of, head_of
from tests.server.serving import LOOPBACK, dialing, serving

LARGE = make_blob(part_nbytes=200_000)
SMALL = make_blob(1, part_nbytes=100_000)
BODY_NBYTES = len(body_of(LARGE))


@pytest.fixture
def server() -> Iterator[RpcServer]:
    """A server whose budget is two chunks, and that bears a long silence as long as nobody is hurt by it."""
    config = replace(LOOPBACK, max_inflight_bytes=2 * len(LARGE), max_blob_bytes=len(LARGE), idle_timeout_s=60.0)
    with serving(make_service(), config) as running:
        yield running


@pytest.fixture(params=SOCKETS)
def lane(request: pytest.FixtureRequest) -> LaneName:
    """The lane of the silent clients."""
    return "shm" if request.param == "shm" else "tcp"


def fall_silent(server: RpcServer, lane: str, stack: ExitStack) -> None:
    """Begin two puts that hold the whole budget."""
    for _ in range(2):
        frames = stack.enter_context(greeted(server, lane))
        frames.send(Kind.PUT, head_of(LARGE), soon(), body_of(LARGE)[:1000], body_nbytes=BODY_NBYTES)
    until(lambda: server.budget.lent_bytes == 2 * BODY_NBYTES)


def test_a_put_beyond_the_budget_is_refused_at_once(server: RpcServer, lane: LaneName) -> None:
    """With the setting to raise; who was silent only for a moment goes on."""
    with ExitStack() as stack:
        fall_silent(server, lane, stack)
        with dialing(server, lane=lane) as remote, pytest.raises(CapacityError, match="max_inflight_bytes"):
            remote.put(SMALL, PutNote())
        assert server.budget.lent_bytes == 2 * BODY_NBYTES


@pytest.mark.parametrize("way", ["shm", "tcp", "grpc"])
def test_silent_puts_give_their_budget_to_who_needs_it(server: RpcServer, lane: LaneName, way: LaneName) -> None:
    """After one second of silence, whichever lane the next client takes."""
    with ExitStack() as stack:
        fall_silent(server, lane, stack)
        with dialing(server, lane=way, retry=Retry(attempts=200, longest_pause_s=0.05, seed=1)) as remote:
            assert remote.put(SMALL, PutNote()).stored
    until(lambda: server.budget.lent_bytes == 0)
