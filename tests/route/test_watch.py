"""Workers are asked whether they serve, and a server of ours says so."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from kvstore.server.grpc_server import RpcServer
from kvworker.route.board import Board
from kvworker.route.links import Links, Watch
from kvworker.serve.registration import registration
from tests.route.fakes import SERVER, Script
from tests.worker.waiting import until


@pytest.fixture
def board() -> Iterator[Board]:
    """A board that is watched closely."""
    board = Board(1 << 20)
    watch = Watch(board, Links(None), every_s=0.01, silence_s=0.3)
    watch.start()
    yield board
    watch.stop()


def serves(board: Board) -> bool:
    """Tell whether the one worker takes requests, as far as is known."""
    return board.states({})[0].is_serving


def test_a_worker_that_is_back_takes_requests_again(board: Board) -> None:
    """A call that failed had taken it off the board."""
    server = RpcServer(SERVER)
    server.start([registration(Script("a"))])
    board.join("a", server.address)
    board.lost(("a", server.address))
    until(lambda: serves(board))
    server.drain()
    until(lambda: not serves(board))


def test_a_worker_that_takes_connections_and_says_nothing_is_given_up(board: Board) -> None:
    """As a stopped process, or a network that swallows everything."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        board.join("a", f"127.0.0.1:{silent.getsockname()[1]}")
        until(lambda: not serves(board))
