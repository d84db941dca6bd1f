"""One connection of a socket lane: requests of one tenant, answered in their order on one thread."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import closing

from kvclient.lanes.frames import (
    Behalf,
    Found,
    Kind,
    count_keys,
    pack_count,
    pack_error,
    pack_found,
    pack_placed,
    pack_receipt,
    parse_behalf,
    parse_keys,
    parse_put,
    parse_share,
)
from kvclient.lanes.put_frames import parse_lent, parse_put_lent
from kvclient.lanes.socket_frames import SocketFrames
from kvclient.lanes.stripes import InTurn
from kvstore.core.api import Hit, Status
from kvstore.core.blob import HEADER_NBYTES, blob_nbytes, header_nbytes
from kvstore.core.errors import CapacityError, FormatError, KVError, QuotaError, UnsupportedError
from kvstore.core.landing import PIECE_NBYTES, Landing
from kvstore.core.pool import BufferPool
from kvstore.core.reading import land_all
from kvstore.server.access.auth import Identity
from kvstore.server.budget import ByteBudget
from kvstore.server.guard import SilenceWatch
from kvstore.server.lanes.leases import Leases
from kvstore.server.lanes.listing import Listing
from kvstore.server.lanes.loans import Loans
from kvstore.server.lanes.receiving import FromRing, FromSockets, Receiving, Supply
from kvstore.server.lanes.ring import Ring
from kvstore.server.observe.calls import OK
from kvstore.server.service import BoundStore
from kvstore.server.visit import Work
from kvstore.store.memory import BlockLanding
from kvstore.store.pages import make_ring
from kvstore.store.results import Opened

logger = logging.getLogger(__name__)

_CALLS = {kind: kind.name.lower() for kind in Kind}
_OF_NOBODY = Behalf()
_APART = (Kind.READ, Kind.STAGE, Kind.LEND)  # serve many requests, or another connection's

INLINE_NBYTES = 16 << 10  # a chunk up to this length is sent even where it could be read in place
MAX_SKIPPED_NBYTES = 4 << 30
RING_NBYTES = 4 << 20  # measured: puts through 8 MiB take 4 to 10 % longer, their ring is not in a cache; through 2 MiB, more is waited


class Session:
    """Answers GET, GET_SHARE, VIEW and the kinds of PUT, and takes READ, until the peer goes.

    Every wait within a message ends after `patience_s`. `caller` is whose ticket was shown.

    Copies in this process: get none (bytes go from where they lie to the socket), put none beyond receiving straight into the memory tier;
    a staged put one, out of the ring.
    """

    def __init__(
        self,
        frames: SocketFrames,
        store: BoundStore,
        sharing: tuple[Leases, Listing] | None,
        budget: ByteBudget,
        watch: SilenceWatch,
        patience_s: float,
        caller: Identity,
        loans: Loans,
    ) -> None:
        self._frames = frames
        self._store = store
        self._sharing = sharing
        self._budget = budget
        self._watch = watch
        self._patience_s = patience_s
        self.caller = caller
        self._loans = loans
        self._carriers: Sequence[SocketFrames] = ()  # that were lent to the put under way
        lane = "shm" if sharing else "tcp"
        self._calls, self._sheet, self._code = store.lane_calls, store.lane_calls.open(lane), OK
        self._sent, self._received = f"lane.{lane}.sent_bytes", f"lane.{lane}.received_bytes"
        self._lane, self._behalf = lane, _OF_NOBODY
        self._scratch = BufferPool(0)
        self._ring: Ring | None = None
        self.is_idle = True
        self.idle_since = time.monotonic()

    def serve(self) -> None:
        """Answer requests until the peer goes or breaks the rules."""
        while True:
            self.is_idle, self.idle_since = True, time.monotonic()
            kind, head, body_nbytes = self._frames.receive(float("inf"))
            if kind is Kind.ON_BEHALF:
                self._behalf = parse_behalf(head)
                continue
            self.is_idle = False
            self._count(kind, head, body_nbytes)

    def _count(self, kind: Kind, head: bytes, body_nbytes: int) -> None:
        """Answer one request, and count it with how it ended."""
        began, self._code = time.perf_counter(), OK
        work = None if self._behalf == _OF_NOBODY or kind in _APART else self._work(kind)
        try:
            if work is None:
                self._answer(kind, head, body_nbytes)
            else:
                work.run(self._answer, kind, head, body_nbytes)
        except BaseException:
            self._code = "CANCELLED"
            raise
        finally:
            self._sheet[_CALLS[kind]].add(time.perf_counter() - began, self._code)
            if work is not None:
                work.end(self._code)

    def _work(self, kind: Kind) -> Work:
        """Join the request and the span that the peer named; a request that is part of no trace begins none."""
        request_id, parent = self._behalf
        return Work(request_id, f"larder.{self._lane}.{_CALLS[kind]}" if parent else "", parent)

    def expire(self) -> None:
        """End leases that lasted too long; called from another thread."""
        if self._sharing:
            self._sharing[0].expire()

    def cancel(self) -> None:
        """Hang up on a peer that is silent in the middle of a put; called by the watch."""
        for frames in (self._frames, *self._carriers):
            frames.close()
        self._loans.wake()

    def close(self) -> None:
        """Free everything that the connection holds."""
        self.cancel()
        self._calls.close(self._sheet)
        if self._sharing:
            self._sharing[0].close()
        self._ring = None

    def _answer(self, kind: Kind, head: bytes, body_nbytes: int) -> None:
        """Answer one request; an error of ours is an answer too, and the connection goes on."""
        if kind is Kind.GET:
            self._get(head)
        elif kind is Kind.VIEW and self._sharing:
            self._view(head, *self._sharing)
        elif kind is Kind.READ:
            self._store.note_reads(zip(*parse_keys(head), strict=False))
        elif kind is Kind.GET_SHARE:
            self._get_share(head)
        elif kind is Kind.PUT:
            self._put(head, body_nbytes, FromSockets(self._frames))
        elif kind is Kind.PUT_STAGED and self._ring is not None:
            self._put(head, body_nbytes, FromRing(self._ring, self._frames))
        elif kind is Kind.PUT_LENT:
            self._put_lent(head, body_nbytes)
        elif kind is Kind.LEND:
            self._lend(head)
        elif kind is Kind.STAGE and self._sharing:
            self._stage()
        else:
            raise FormatError(f"{kind.name} is not a request of this connection")

    def _deadline(self) -> float:
        return time.monotonic() + self._patience_s

    def _refuse(self, error: Exception) -> None:
        if not isinstance(error, KVError):
            logger.error("a request of a lane failed", exc_info=error)
        self._code = error.code if isinstance(error, KVError) else KVError.code
        self._frames.send(Kind.ERROR, pack_error(error), self._deadline())

    def _get(self, head: bytes) -> None:
        """Send chunks behind each other."""
        try:
            self._store.allowance.request(count_keys(head))
            keys, _ = parse_keys(head)
            opened = [self._store.read(key) for key in keys]
        except Exception as error:
            self._refuse(error)
            return
        self._send(Kind.FOUND, pack_found([found(each) for each in opened]), [each for each in opened if isinstance(each, Opened)])

    def _get_share(self, head: bytes) -> None:
        """Send the pieces of one chunk that belong to this connection."""
        try:
            self._store.allowance.request()
            key, share = parse_share(head)
            opened = self._store.read(key)
        except Exception as error:
            self._refuse(error)
            return
        answer = found(opened)
        self._store.counters.add(self._sent, share.nbytes(answer.nbytes))
        self._frames.send(Kind.FOUND, pack_found([answer]), self._deadline(), body_nbytes=share.nbytes(answer.nbytes))
        if isinstance(opened, Opened):
            with closing(opened.landing) as landing:
                for at, end in share.pieces(landing.nbytes):
                    landing.fill(end)
                    self._frames.send_body(landing.view[at:end], self._deadline())

    def _view(self, head: bytes, leases: Leases, listing: Listing) -> None:
        """Say where chunks lie, and send those that can't be read in place."""
        inline: list[Opened] = []
        answers: list[Found] = []
        try:
            keys, ended = parse_keys(head)
            leases.end(ended)
            self._store.allowance.request(len(keys))
            stamp = listing.stamp()
            for key in keys:
                opened = self._store.read(key)
                answer = found(opened, leases)
                answers.append(answer)
                if isinstance(opened, Opened):
                    listing.enter(key, opened, stamp)
                    if answer.place is None:
                        inline.append(opened)
        except Exception as error:
            leases.end(answer.place.lease for answer in answers if answer.place)
            self._refuse(error)
            return
        self._store.counters.add(self._sent, sum(answer.nbytes for answer in answers if answer.place))
        self._send(Kind.PLACED, pack_placed(answers), inline)

    def _send(self, kind: Kind, head: bytes, opened: list[Opened]) -> None:
        """Send an answer with the bytes of chunks, each piece as soon as it is here. A tier that fails ends the connection."""
        total = sum(each.landing.nbytes for each in opened)
        self._store.counters.add(self._sent, total)
        try:
            if total <= INLINE_NBYTES:
                for each in opened:
                    each.landing.fill(each.landing.nbytes)
                self._frames.send(kind, head, self._deadline(), b"".join(each.landing.view for each in opened))
                return
            with self._store.allowance.transfer(total):
                for each in opened:
                    head = self._send_blob(each.landing, kind, head, total)
        except QuotaError as error:  # before the first byte
            self._refuse(error)
        finally:
            for each in opened:
                each.landing.close()

    def _send_blob(self, landing: Landing, kind: Kind, head: bytes, total: int) -> bytes:
        """Send a chunk, the first one with the head of the answer; return the head that is still to be sent, which is none."""
        at = 0
        while at < landing.nbytes:
            landing.fill(min(at + PIECE_NBYTES, landing.nbytes))
            piece, at = landing.view[at : landing.filled], landing.filled
            if head:
                self._frames.send(kind, head, self._deadline(), piece, total)
                head = b""
            else:
                self._frames.send_body(piece, self._deadline())
        return head

    def _put(self, head: bytes, body_nbytes: int, supply: Supply) -> None:
        """Receive a chunk into the place where it is kept, verify it on the way, and publish it."""
        receiving: Receiving | None = None
        try:
            self._store.allowance.request()
            note, header = parse_put(head)
            if announced_nbytes(header) != len(header) + body_nbytes:
                raise FormatError(f"{announced_nbytes(header)} B were announced, {len(header) + body_nbytes} B come")
            with self._store.allowance.transfer(body_nbytes), self._budget.lend(body_nbytes):
                draft = self._store.begin_put(header, note)
                receiving = Receiving(supply, draft.blob, len(header), self, self._watch, self._deadline)
                land_all(receiving)
                receipt = self._store.commit_put(draft, note.durable)
                self._store.counters.add(self._received, body_nbytes)
        except Exception as error:
            if supply.is_lost():
                raise
            self._skip(body_nbytes - (receiving.received_nbytes if receiving else 0), supply)
            self._refuse(error)
            return
        self._frames.send(Kind.STORED, pack_receipt(receipt), self._deadline())

    def _skip(self, nbytes: int, supply: Supply) -> None:
        """Receive what comes of a body that is not wanted, so that the next message is found."""
        if nbytes > MAX_SKIPPED_NBYTES:
            raise CapacityError(f"a body of {nbytes} B is not received to its end")
        scratch = self._scratch.take(PIECE_NBYTES)
        while nbytes > 0:
            unwanted = Receiving(supply, scratch[: min(nbytes, PIECE_NBYTES)], 0, self, self._watch, self._deadline)
            unwanted.fill(unwanted.nbytes)
            nbytes -= unwanted.nbytes

    def _put_lent(self, head: bytes, body_nbytes: int) -> None:
        """Receive a chunk in turn by this connection and those that are lent to it; when they are not, all of them end."""
        lent, head = parse_put_lent(head)
        with self._loans.claimed(self.caller.tenant, lent, self._deadline()) as carriers:
            self._carriers = carriers
            try:
                self._put(head, body_nbytes, FromSockets(InTurn((self._frames, *carriers), lent.share.piece_nbytes)))
            finally:
                self._carriers = ()

    def _lend(self, head: bytes) -> None:
        """Leave this connection to a put by another one until that is over."""
        self._watch.begin(self)
        try:
            loan = self._loans.offer(self.caller.tenant, parse_lent(head), self._frames, self._patience_s)
        finally:
            self._watch.end(self)
        self._loans.wait(loan)

    def _stage(self) -> None:
        """Make the ring that this connection's puts go through; its memory goes with the connection."""
        made = make_ring(RING_NBYTES)
        if made is None:
            self._refuse(UnsupportedError("staged puts need a system with memfd"))
            return
        self._ring, descriptor = Ring(made[0]), made[1]
        try:
            self._frames.send(Kind.STAGED, pack_count(RING_NBYTES), self._deadline())
            self._frames.send_descriptor(descriptor, self._deadline())
        finally:
            os.close(descriptor)


def found(opened: Opened | Hit, leases: Leases | None = None) -> Found:
    """Return what is told of a chunk; one that can be read in place is leased."""
    if isinstance(opened, Hit):
        return Found(opened.status, opened.reason, 0)
    place = None
    if leases and isinstance(opened.landing, BlockLanding) and opened.landing.nbytes > INLINE_NBYTES:
        place = leases.grant(opened.landing)
    return Found(Status.READY, opened.tier, opened.landing.nbytes, place)


def announced_nbytes(header: bytes) -> int:
    """Return the length of the blob that begins with `header`; raises FormatError unless it is all of a header and manifest."""
    if len(header) < HEADER_NBYTES or header_nbytes(header[:HEADER_NBYTES]) != len(header):
        raise FormatError(f"a put begins with the chunk's header and manifest, got {len(header)} B")
    return blob_nbytes(header)
