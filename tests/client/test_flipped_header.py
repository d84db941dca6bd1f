"""Plain text: what one flipped bit does to a connection that lives on."""

from __future__ import annotations

import socket

from kvclient import Larder, Retry
from kvstore.core.errors import KVError
from tests.client.fake_server import TOKEN, FakeServer
from tests.faults.proxy import Fault, FaultProxy, Harm, Way

HEADER = b"user-agent"


class Noted(socket.socket):
    """Notes what is sent."""

    sent = b""

    def sendall(self, data: bytes, flags: int = 0) -> None:  # type: ignore[override]
        self.sent += data
        super().sendall(data, flags)


def ask_through(server: FakeServer, fault: Fault | None, n_calls: int) -> tuple[list[str], bytes]:
    """Make calls over one connection that is hurt; return what came of each, and what reached the server."""
    dialled = Noted()
    listening = socket.create_server(("127.0.0.1", 0))

    def dial() -> socket.socket:
        dialled.connect(("127.0.0.1", server.port))
        return dialled

    proxy = FaultProxy(listening, dial, fault)
    outcomes = []
    with Larder(f"127.0.0.1:{proxy.port}", TOKEN, timeout_s=10.0, retry=Retry(1)) as larder:
        for _ in range(n_calls):
            try:
                outcomes.append(larder.info().model)
            except KVError as error:
                outcomes.append(str(error))
    proxy.close()
    return outcomes, dialled.sent


def test_a_flipped_bit_of_a_header_fails_one_call_and_no_later_one(server: FakeServer) -> None:
    """Headers are remembered by nobody: with gRPC's table of headers each later call over the connection would fail as the first did."""
    _, sent = ask_through(server, None, n_calls=1)
    flip = Fault(Harm.FLIP, Way.UP, sent.index(HEADER) + 1, bit=7)
    (first, *later), _ = ask_through(server, flip, n_calls=3)
    assert "header" in first
    assert later == ["tiny", "tiny"]
