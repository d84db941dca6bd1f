"""Records on their way from a slow tier: received once for many readers, each of which may stop when it likes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvstore.core.errors import ClosedError, CorruptError, DeadlineError, TierUnavailableError
from kvstore.core.landing import PIECE_NBYTES, Landing
from kvstore.store.arriving import Arriving, _Opening

PLACE = (bytes(32), 1)
DATA = bytes(range(256)) * (5 * PIECE_NBYTES // 256)
FOREVER = float("inf")


class Source(Landing):
    """Pieces of `DATA` from far away; counts what is received and tells when it is let go."""

    def __init__(self) -> None:
        super().__init__(memoryview(bytearray(len(DATA))))
        self.receives = 0
        self.error: Exception | None = None
        self.is_over = False

    def _receive(self, room: memoryview) -> int:
        self.receives += 1
        if self.error is not None:
            raise self.error
        room[:PIECE_NBYTES] = DATA[self.filled : self.filled + PIECE_NBYTES]
        return PIECE_NBYTES

    def _end(self) -> None:
        self.is_over = True


class Far:
    """Begins to read from a `Source`, each time anew; `gate` holds that back while it is cleared."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.is_there = True
        self.is_fast = False

    def begin(self) -> Landing | None:
        """Return a new source, or None."""
        self.begun.release()
        self.gate.wait()
        self.sources.append(Source())
        if self.is_fast:
            self.sources[-1].fill(len(DATA))
        return self.sources[-1] if self.is_there else None


def join(arriving: Arriving, far: Far, deadline: float = FOREVER) -> Landing:
    """Join a record that is there."""
    landing = arriving.join(PLACE, far.begin, deadline)
    assert landing is not None
    return landing


class Turnstile:
    """A lock that tells who has come to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.came = threading.Semaphore(0)
        self.release = self._lock.release

    def acquire(self, timeout: float) -> bool:
        """Say so, then wait."""
        self.came.release()
        return self._lock.acquire(timeout=timeout)


def join_while_one_begins(far: Far, count: int) -> list[Landing | None]:
    """Have so many threads join; the first of them to begin is held back until all have come."""
    arriving, opening = Arriving(), _Opening()
    turnstile = opening.turn = Turnstile()  # type: ignore[assignment]
    arriving._opening[PLACE] = opening
    far.gate.clear()
    with ThreadPoolExecutor(count) as threads:
        joins = [threads.submit(arriving.join, PLACE, far.begin, FOREVER) for _ in range(count)]
        for _ in range(count):
            turnstile.came.acquire()
        far.gate.set()
        return [joined.result() for joined in joins]


def test_readers_at_the_same_time_receive_each_byte_once() -> None:
    """Whoever is first pulls the next piece; the others find it there."""
    arriving, far = Arriving(), Far()
    readers = [join(arriving, far) for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda reader: reader.fill(len(DATA)), readers))
    assert all(reader.view == DATA for reader in readers)
    assert (len(far.sources), far.sources[0].receives, far.sources[0].is_over) == (1, 5, True)


def test_a_reader_that_comes_late_finds_what_is_there() -> None:
    """And pulls the rest itself when the first one does not go on."""
    arriving, far = Arriving(), Far()
    first = join(arriving, far)
    first.fill(2 * PIECE_NBYTES)
    second = join(arriving, far)
    assert second.filled == 2 * PIECE_NBYTES
    second.fill(len(DATA))
    assert (second.view, first.filled, len(far.sources)) == (DATA, 2 * PIECE_NBYTES, 1)


def test_only_the_last_reader_that_stops_ends_the_reading() -> None:
    """One that closes takes nothing from the others."""
    arriving, far = Arriving(), Far()
    first, second = join(arriving, far), join(arriving, far)
    first.fill(PIECE_NBYTES)
    first.close()
    first.close()
    assert not far.sources[0].is_over
    second.fill(2 * PIECE_NBYTES)
    second.close()
    assert (far.sources[0].is_over, far.sources[0].receives) == (True, 2)
    with pytest.raises(ClosedError):
        second.fill(len(DATA))


def test_a_reading_that_was_given_up_is_not_joined() -> None:
    """Who comes later reads anew."""
    arriving, far = Arriving(), Far()
    join(arriving, far).close()
    later = join(arriving, far)
    later.fill(len(DATA))
    assert (later.view, len(far.sources)) == (DATA, 2)


def test_a_failure_reaches_every_reader_and_the_next_one_begins_anew() -> None:
    """An error must not be remembered longer than those who met it."""
    arriving, far = Arriving(), Far()
    readers = [join(arriving, far) for _ in range(2)]
    far.sources[0].error = TierUnavailableError("down")
    for reader in readers:
        with pytest.raises(TierUnavailableError):
            reader.fill(1)
    later = join(arriving, far)
    later.fill(len(DATA))
    assert (later.view, len(far.sources)) == (DATA, 2)


def test_who_waits_while_another_begins_gets_what_that_one_got() -> None:
    """Also when all of it was there before the others woke up."""
    far = Far()
    far.is_fast = True
    landings = join_while_one_begins(far, 6)
    assert all(landing is not None and landing.view == DATA for landing in landings)
    assert (len(far.sources), far.sources[0].receives) == (1, 5)


def test_who_waits_while_another_finds_nothing_finds_nothing() -> None:
    """A record that is missing is asked for once, not once for each who wants it."""
    far = Far()
    far.is_there = False
    assert join_while_one_begins(far, 6) == [None] * 6
    assert len(far.sources) == 1


def test_who_waits_while_another_fails_asks_for_itself() -> None:
    """The first one's deadline, or bad luck, is not everybody's."""
    arriving, failures = Arriving(), [TierUnavailableError("down")]
    gate, begun = threading.Event(), threading.Event()
    far = Far()

    def begin() -> Landing | None:
        begun.set()
        gate.wait()
        if failures:
            raise failures.pop()
        return far.begin()

    with ThreadPoolExecutor(2) as threads:
        joins = [threads.submit(arriving.join, PLACE, begin, FOREVER) for _ in range(2)]
        begun.wait()
        gate.set()
        assert sorted(type(joined.exception()).__name__ for joined in joins) == ["NoneType", "TierUnavailableError"]


def test_waiting_for_another_reader_ends_at_the_deadline() -> None:
    """However long the other one is held up."""
    arriving, far = Arriving(), Far()
    far.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(arriving.join, PLACE, far.begin, FOREVER)
        far.begun.acquire()
        with pytest.raises(DeadlineError, match="another read"):
            arriving.join(PLACE, far.begin, time.monotonic() + 0.02)
        far.gate.set()
        assert first.result() is not None


def test_one_readers_deadline_does_not_end_anothers_reading() -> None:
    """Neither when the hasty one came first nor when it came last."""
    arriving, far = Arriving(), Far()
    for deadlines in ((time.monotonic(), FOREVER), (FOREVER, time.monotonic())):
        readers = [join(arriving, far, time.monotonic() + 60.0) for _ in deadlines]
        for reader, deadline in zip(readers, deadlines, strict=True):
            reader.deadline = deadline
        hasty, patient = sorted(readers, key=lambda reader: reader.deadline)
        with pytest.raises(DeadlineError):
            hasty.fill(1)
        patient.fill(len(DATA))
        assert patient.view == DATA
    assert len(far.sources) == 2


def test_what_is_forgotten_is_joined_no_more_and_read_on_by_its_readers() -> None:
    """A damaged copy that was taken out of sight must not be the answer to the next question."""
    arriving, far = Arriving(), Far()
    before = join(arriving, far)
    before.fill(PIECE_NBYTES)
    arriving.forget(PLACE)
    far.is_there = False
    assert arriving.join(PLACE, far.begin, FOREVER) is None
    before.fill(len(DATA))
    assert (before.view, far.sources[0].receives) == (DATA, 5)


def test_nothing_is_kept_of_what_is_over() -> None:
    """Whole, closed, dropped, failed or absent: a store that runs for months must not grow with the keys it was asked for."""
    arriving, far = Arriving(), Far()
    join(arriving, far).fill(len(DATA))
    join(arriving, far).close()
    join(arriving, far)
    far.is_there = False
    arriving.join(PLACE, far.begin, FOREVER)

    def fail() -> Landing | None:
        raise CorruptError("damaged")

    with pytest.raises(CorruptError):
        arriving.join(PLACE, fail, FOREVER)
    assert (len(arriving._opening), len(arriving._shared)) == (0, 0)
