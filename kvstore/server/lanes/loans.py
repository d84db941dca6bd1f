"""Connections that a client lends to a put by another one of its own, so that one large chunk comes by several."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kvclient.lanes.put_frames import Lent
from kvclient.lanes.socket_frames import SocketFrames
from kvstore.core.errors import DeadlineError, FormatError

_Place = tuple[str, Lent]  # whose put, and which pieces of it


class Loan:
    """One connection, in the hands of the put that claimed it until that is over."""

    def __init__(self, frames: SocketFrames) -> None:
        self.frames = frames
        self.is_claimed = self.is_over = False


class Loans:
    """Where connections of one listener meet; thread-safe. Nothing is held for a put but the connections themselves."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._offered: dict[_Place, Loan] = {}

    def offer(self, tenant: str, lent: Lent, frames: SocketFrames, patience_s: float) -> Loan:
        """Wait until a put claims a connection; raises DeadlineError when none comes, or the connection is closed meanwhile."""
        place, loan = (tenant, lent), Loan(frames)
        with self._changed:
            if not lent.share.index or place in self._offered:
                raise FormatError(f"share {lent.share.index} of a put was lent twice, or is its own")
            self._offered[place] = loan
            self._changed.notify_all()
            self._changed.wait_for(lambda: loan.is_claimed or frames.is_closed, patience_s)
            if not loan.is_claimed:
                del self._offered[place]
                raise DeadlineError("a connection was lent to a put that did not come")
        return loan

    def wait(self, loan: Loan) -> None:
        """Wait until the put that claimed a connection is over."""
        with self._changed:
            self._changed.wait_for(lambda: loan.is_over)

    def wake(self) -> None:
        """Have whoever waits see that its connection was closed."""
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def claimed(self, tenant: str, lent: Lent, deadline: float) -> Iterator[Sequence[SocketFrames]]:
        """Use the connections that were lent to a put within the block, which may have to come yet; they are closed when it raises.

        Raises DeadlineError when they do not come in time.
        """
        shares = [lent.share.of(index) for index in range(1, lent.share.count)]
        loans = self._claim([(tenant, Lent(lent.name, share)) for share in shares], deadline)
        try:
            yield [loan.frames for loan in loans]
        except BaseException:
            for loan in loans:
                loan.frames.close()
            raise
        finally:
            with self._changed:
                for loan in loans:
                    loan.is_over = True
                self._changed.notify_all()

    def _claim(self, places: Sequence[_Place], deadline: float) -> list[Loan]:
        with self._changed:
            left_s = max(0.0, deadline - time.monotonic())
            if not self._changed.wait_for(lambda: all(place in self._offered for place in places), left_s):
                raise DeadlineError(f"not all of the {len(places)} connections of a put were lent to it in time")
            loans = [self._offered.pop(place) for place in places]
            for loan in loans:
                loan.is_claimed = True
            self._changed.notify_all()
        return loans
