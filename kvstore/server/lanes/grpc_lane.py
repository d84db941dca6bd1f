"""The store's side of the grpc lane: chunks as raw messages, which no protobuf wraps."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from kvclient.lanes.frames import count_keys, pack_found, pack_receipt, parse_keys, parse_put
from kvclient.lanes.grpc_lane import LENGTH_NBYTES, SERVICE
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError
from kvstore.core.landing import PIECE_NBYTES, Landing
from kvstore.core.reading import land_all
from kvstore.server.access.entrance import Entrance
from kvstore.server.budget import ByteBudget
from kvstore.server.lanes.session import announced_nbytes, found
from kvstore.store.results import Opened

_WHOLE, _HEAD_ONLY = b"\1", b"\0"
_SENT, _RECEIVED = "lane.grpc.sent_bytes", "lane.grpc.received_bytes"


class GrpcLaneServicer:
    """Serves Fetch, Get, Store and Put. Copies of each byte: get one (gRPC sends bytes objects only), put one, into the memory tier."""

    def __init__(self, entrance: Entrance, budget: ByteBudget) -> None:
        self._entrance = entrance
        self._budget = budget

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the methods as gRPC takes them."""
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Fetch": grpc.unary_unary_rpc_method_handler(self._fetch),
            "Get": grpc.unary_stream_rpc_method_handler(self._get),
            "Store": grpc.unary_unary_rpc_method_handler(self._store),
            "Put": grpc.stream_unary_rpc_method_handler(self._put),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _fetch(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Say what there is under each key, with the chunks if they fit into one message."""
        store = self._entrance.bind(context)
        store.allowance.request(count_keys(request))
        keys = parse_keys(request)[0]
        answers = [store.read(key) for key in keys]
        opened = [each for each in answers if isinstance(each, Opened)]
        head = pack_found([found(each) for each in answers])
        start = len(head).to_bytes(4, "little")
        try:
            if sum(each.landing.nbytes for each in opened) > PIECE_NBYTES:
                return b"".join((start, _HEAD_ONLY, head))
            store.counters.add(_SENT, sum(each.landing.nbytes for each in opened))
            for each in opened:
                each.landing.fill(each.landing.nbytes)
            return b"".join((start, _WHOLE, head, *(each.landing.view for each in opened)))
        finally:
            for each in opened:
                each.landing.close()

    def _get(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Stream what there is under each key, then the chunks, each piece as soon as it is here."""
        store = self._entrance.bind(context)
        store.allowance.request(count_keys(request))
        keys = parse_keys(request)[0]
        answers = [store.read(key) for key in keys]
        opened = [each for each in answers if isinstance(each, Opened)]
        try:
            total = sum(each.landing.nbytes for each in opened)
            with store.allowance.transfer(total), self._budget.lend(total):
                store.counters.add(_SENT, sum(each.landing.nbytes for each in opened))
                yield pack_found([found(each) for each in answers])
                for landing in (each.landing for each in opened):
                    for at in range(0, landing.nbytes, PIECE_NBYTES):
                        end = min(at + PIECE_NBYTES, landing.nbytes)
                        landing.fill(end)
                        yield bytes(landing.view[at:end])
        finally:
            for each in opened:
                each.landing.close()

    def _store(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Take a chunk that came in one message."""
        end = LENGTH_NBYTES + int.from_bytes(request[:LENGTH_NBYTES], "little")
        body = memoryview(request)[end:]
        return self._receive(request[LENGTH_NBYTES:end], iter((body,) if body else ()), context)

    def _put(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Take a chunk that comes in several messages."""
        return self._receive(next(messages, b""), messages, context)

    def _receive(self, head: bytes, messages: Iterator[Buffer], context: grpc.ServicerContext) -> bytes:
        """Receive a chunk into the place where it is kept, verify it on the way, and publish it."""
        store = self._entrance.bind(context)
        store.allowance.request()
        note, header = parse_put(head)
        nbytes = announced_nbytes(header)
        self._entrance.service.check_size(nbytes)
        with store.allowance.transfer(nbytes), self._budget.lend(nbytes):
            draft = store.begin_put(header, note)
            land_all(_Messages(messages, draft.blob, len(header)))
            if next(messages, None) is not None:
                raise FormatError(f"more than the {nbytes} B that were announced")
            store.counters.add(_RECEIVED, nbytes)
            return pack_receipt(store.commit_put(draft, note.durable))


class _Messages(Landing):
    """A blob that comes in messages."""

    def __init__(self, messages: Iterator[Buffer], buffer: memoryview, filled: int) -> None:
        super().__init__(buffer, filled)
        self._messages = messages

    def _receive(self, room: memoryview) -> int:
        piece = next(self._messages, None)
        if piece is None:
            raise FormatError(f"{self.nbytes} B were announced, {self.filled} B came")
        if not 0 < len(piece) <= min(PIECE_NBYTES, room.nbytes):
            raise FormatError(f"a message of {len(piece)} B came where 1 to {min(PIECE_NBYTES, room.nbytes)} B belong")
        room[: len(piece)] = piece
        return len(piece)
