"""Whole connections of a lane: a store answers requests that were made up, one after the other, until they end or break the rules."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import closing

from kvclient.lanes import frames, put_frames
from kvclient.lanes.share import Share
from kvclient.lanes.socket_frames import SocketFrames
from kvstore.core.api import PutNote
from kvstore.core.blob import header_nbytes
from kvstore.server.access.auth import Identity
from kvstore.server.budget import ByteBudget
from kvstore.server.guard import SilenceWatch
from kvstore.server.lanes.loans import Loans
from kvstore.server.lanes.session import Session
from kvstore.server.service import StoreService
from tests.fuzz.campaign import Target
from tests.server.chunks import key, make_blob, make_service

PATIENCE_S = 0.05  # a peer that does not read its answers is given up soon


class Complaints(logging.Handler):
    """Keeps what was logged as a defect of ours, which a peer must not be able to cause."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.records.append(record)


def serve(service: StoreService, complaints: Complaints) -> Callable[[bytes], object]:
    """Return what serves a connection that says some bytes and nothing more."""
    watch = SilenceWatch(PATIENCE_S, busy_at=1)
    budget = ByteBudget(1 << 20, watch.relieve)

    def connection(data: bytes) -> object:
        ours, theirs = socket.socketpair()
        with closing(theirs):
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            store, caller = service.bind("alpha"), Identity("alpha")
            session = Session(SocketFrames(ours, "client"), store, None, budget, watch, PATIENCE_S, caller, Loans())
            try:
                session.serve()
            finally:
                session.close()
                assert budget.lent_bytes == 0
                assert not complaints.records, complaints.records.pop().getMessage()

    return connection


def repair(data: bytes) -> bytes:
    """Make lengths and sum of the first message's head right."""
    if len(data) < frames.FRAME.size + 4:
        return data
    head_nbytes = int.from_bytes(data[8:12], "little")
    end = frames.FRAME.size + head_nbytes
    if not 4 <= head_nbytes <= len(data) - frames.FRAME.size:
        return data
    return data[: frames.FRAME.size] + frames.sealed(data[frames.FRAME.size : end - 4]) + data[end:]


def sessions() -> dict[str, Target]:
    """Return the target: connections that read, read a share, tell of reads, and put."""
    service, complaints, blob = make_service(), Complaints(), bytes(make_blob(n_parts=2, part_nbytes=200))
    for name in ("kvstore.server.lanes.session", "kvstore.server.service", "kvstore.server.typed_errors"):
        logging.getLogger(name).addHandler(complaints)
    service.bind("alpha").put(blob, PutNote())
    nbytes = header_nbytes(blob)
    put, body = frames.pack_put(PutNote("book", 1.0, False), blob[:nbytes]), blob[nbytes:]
    get, absent = frames.pack_keys([key(blob)]), frames.pack_keys([key(make_blob(1))])
    alone = put_frames.Lent(bytes(16), Share(0, 1, 1 << 20))  # nobody has to lend anything
    share = frames.pack_share(key(blob), Share(0, 2, 1 << 20))
    said = [
        (frames.Kind.ON_BEHALF, frames.pack_behalf(frames.Behalf("0123456789abcdef", f"00-{'a' * 32}-{'b' * 16}-01")), b""),
        (frames.Kind.GET, get, b""),
        (frames.Kind.GET_SHARE, share, b""),
        (frames.Kind.READ, frames.pack_keys([key(blob)], [3]), b""),
        (frames.Kind.PUT, put, body),
        (frames.Kind.PUT_LENT, put_frames.pack_put_lent(alone, PutNote(), blob[:nbytes]), body),
        (frames.Kind.GET, absent, b""),
    ]
    messages = [frames.pack_frame(kind, len(head), len(rest)) + head + rest for kind, head, rest in said]
    return {"lane session": Target(serve(service, complaints), (*messages, b"".join(messages)), repair, ends_in_error=True)}
