"""A landing is pulled from its front: nobody receives what nobody needs, each byte comes once, and what goes wrong stays wrong."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from kvstore.core.errors import ClosedError, CorruptError, DeadlineError, FormatError, TierUnavailableError
from kvstore.core.landing import PIECE_NBYTES, Copied, Landed, Landing, Tail

PIECE = 10
DATA = bytes(range(256)) * 2


class Source(Landing):
    """Lands `DATA` in pieces of 10 bytes; `before` is called with the bytes that are there before each receive."""

    def __init__(self, nbytes: int = 95, before: Callable[[int], None] = lambda filled: None) -> None:
        super().__init__(memoryview(bytearray(nbytes)))
        self.asked: list[int] = []
        self.n_ends = 0
        self._before = before

    def _receive(self, room: memoryview) -> int:
        self.asked.append(self.filled)
        self._before(self.filled)
        count = min(PIECE, room.nbytes)
        room[:count] = DATA[self.filled : self.filled + count]
        return count

    def _end(self) -> None:
        self.n_ends += 1


class Liar(Source):
    """Says that another number of bytes came than there is room for."""

    count = 0

    def _receive(self, room: memoryview) -> int:
        return self.count


def failing_at(at: int, error: Exception) -> Source:
    """Return a landing whose receive fails once `at` bytes are there."""

    def fail(filled: int) -> None:
        if filled >= at:
            raise error

    return Source(before=fail)


def test_only_what_is_needed_is_received_and_in_order() -> None:
    landing = Source()
    landing.fill(1)
    landing.fill(25)
    landing.fill(7)
    assert (landing.asked, landing.filled, bytes(landing.view[:25])) == ([0, 10, 20], 30, DATA[:25])


def test_the_last_piece_may_be_short() -> None:
    landing = Source(95)
    landing.fill(95)
    assert (bytes(landing.view), landing.asked[-1]) == (DATA[:95], 90)


def test_nothing_is_received_for_an_empty_front() -> None:
    landing = Source()
    landing.fill(0)
    assert landing.asked == []


def test_more_than_there_is_cannot_be_asked_for() -> None:
    """A hostile length is refused, and the landing goes on: it was the asker's mistake."""
    landing = Source(95)
    with pytest.raises(FormatError, match="96 B were asked for of 95 B"):
        landing.fill(96)
    landing.fill(95)
    assert not landing.has_failed


def test_the_view_cannot_be_written() -> None:
    """Several readers share one buffer."""
    with pytest.raises(TypeError):
        Source().view[0] = 1


@pytest.mark.parametrize("count", [0, -1, 96])
def test_a_count_that_cannot_be_is_corrupt(count: int) -> None:
    """A source that says nothing came would be asked forever; one that wrote too much wrote past the buffer."""
    landing = Liar(95)
    landing.count = count
    with pytest.raises(CorruptError, match=f"{count} B came behind 0 of 95 B"):
        landing.fill(1)


def test_a_failure_is_final_and_raised_again() -> None:
    """The source is not asked again, even where it might answer now."""
    landing = failing_at(20, TierUnavailableError("the peer is gone"))
    for end in (21, 95, 21):
        with pytest.raises(TierUnavailableError, match="the peer is gone"):
            landing.fill(end)
    assert (landing.asked, landing.n_ends, landing.has_failed) == ([0, 10, 20], 1, True)


def test_what_came_before_a_failure_stays_readable() -> None:
    landing = failing_at(20, CorruptError("no more"))
    with pytest.raises(CorruptError):
        landing.fill(95)
    landing.fill(20)
    assert landing.view[:20] == DATA[:20]


def test_a_landing_that_failed_does_not_keep_its_buffer() -> None:
    """A failure that held the frames it went through would keep 64 MiB until a garbage collection comes by."""
    landing = Liar(95)
    for _ in range(2):
        with suppress(CorruptError):
            landing.fill(95)
    alive = weakref.ref(landing)
    gc.disable()
    try:
        del landing
        assert alive() is None
    finally:
        gc.enable()


def test_an_error_that_is_not_ours_comes_out_as_it_is() -> None:
    """It is a defect, and its own traceback tells where."""
    defect = ZeroDivisionError("defect")
    landing = failing_at(0, defect)
    with pytest.raises(ZeroDivisionError) as caught:
        landing.fill(1)
    assert caught.value is defect


def test_no_receive_begins_behind_the_deadline() -> None:
    landing = Source()
    landing.fill(10)
    landing.deadline = time.monotonic() - 1
    landing.fill(10)
    with pytest.raises(DeadlineError, match="10 of 95 B received"):
        landing.fill(11)
    assert (landing.asked, landing.n_ends) == ([0], 1)


def test_the_source_is_let_go_of_with_the_last_byte_and_only_once() -> None:
    landing = Source(95)
    landing.fill(94)
    landing.fill(95)
    landing.close()
    landing.close()
    assert landing.n_ends == 1


def test_a_closed_landing_receives_no_more_and_keeps_what_it_has() -> None:
    landing = Source()
    landing.fill(20)
    landing.close()
    landing.fill(20)
    with pytest.raises(ClosedError):
        landing.fill(21)
    assert (bytes(landing.view[:20]), landing.n_ends) == (DATA[:20], 1)


def test_a_close_during_a_receive_lets_go_of_the_source_when_it_is_over() -> None:
    """Whoever closes does not wait for a slow source, so the thread that receives has to finish what it began."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(filled: int) -> None:
        begun.set()
        assert go_on.wait(10)

    landing = Source(before=wait)
    with ThreadPoolExecutor(1) as threads:
        filling = threads.submit(landing.fill, 10)
        assert begun.wait(10)
        landing.close()
        assert landing.n_ends == 0
        go_on.set()
        filling.result()
    assert landing.n_ends == 1


def test_a_close_during_a_receive_ends_a_fill_that_needs_more() -> None:
    def close(filled: int) -> None:
        if filled == 20:
            landing.close()

    landing = Source(before=close)
    with pytest.raises(ClosedError):
        landing.fill(95)
    assert (landing.filled, landing.n_ends) == (30, 1)


def test_many_threads_receive_each_byte_once() -> None:
    """Whoever comes second waits for the first and finds the bytes there."""
    landing = Source(500)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(landing.fill, [end % 500 + 1 for end in range(0, 500 * 7, 7)]))
    assert (landing.asked, bytes(landing.view)) == (list(range(0, 500, PIECE)), DATA[:500])


def test_every_thread_that_needs_more_gets_the_failure() -> None:
    landing = failing_at(50, TierUnavailableError("gone"))
    with ThreadPoolExecutor(8) as threads:
        errors = [future.exception() for future in [threads.submit(landing.fill, 95) for _ in range(8)]]
    assert [str(error) for error in errors] == ["gone"] * 8
    assert (landing.asked.count(50), landing.n_ends) == (1, 1)


def test_whoever_waits_for_the_whole_is_called_once_with_the_last_byte() -> None:
    landing, calls = Source(95), list[str]()
    landing.when_whole(lambda: calls.append("first"))
    landing.when_whole(lambda: calls.append("second"))
    landing.fill(94)
    assert landing.filled == 95, "the last piece holds both last bytes"
    landing.fill(95)
    assert calls == ["first", "second"]


def test_whoever_waits_for_the_whole_is_called_once_by_many_threads() -> None:
    landing, calls = Source(500), list[int]()
    landing.when_whole(lambda: calls.append(landing.filled))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(landing.fill, [500] * 64))
    assert calls == [500]


def test_whoever_comes_after_the_last_byte_is_called_at_once() -> None:
    landing, calls = Source(95), list[int]()
    landing.fill(95)
    landing.when_whole(lambda: calls.append(1))
    assert calls == [1]


def test_nobody_is_told_of_a_whole_that_never_came() -> None:
    closed, failed, calls = Source(), failing_at(50, CorruptError("no more")), list[int]()
    for landing in (closed, failed):
        landing.when_whole(lambda: calls.append(1))
    closed.close()
    with pytest.raises(CorruptError):
        failed.fill(95)
    assert calls == []


def test_the_call_may_use_the_landing_that_it_waits_for() -> None:
    """It is made without the lock: a store copies the record to a faster tier from here."""
    landing, seen = Source(95), list[bytes]()

    def copy() -> None:
        landing.fill(95)
        landing.when_whole(lambda: seen.append(bytes(landing.view)))

    landing.when_whole(copy)
    landing.fill(95)
    assert seen == [DATA[:95]]


def test_landed_bytes_are_there_and_stay_through_a_close() -> None:
    landing = Landed(memoryview(DATA))
    landing.close()
    landing.fill(len(DATA))
    assert (bytes(landing.view), landing.view.readonly, landing.has_failed) == (DATA, True, False)
    with pytest.raises(FormatError):
        landing.fill(len(DATA) + 1)


def test_the_tail_of_landed_bytes_is_landed() -> None:
    tail = Landed(memoryview(DATA)).tail(100)
    assert (tail.filled, bytes(tail.view)) == (len(DATA) - 100, DATA[100:])


def test_a_copied_landing_copies_what_is_asked_for() -> None:
    source = memoryview(DATA * (PIECE_NBYTES // 256))
    landing = Copied(source, memoryview(bytearray(source.nbytes)))
    landing.fill(1)
    assert 0 < landing.filled < source.nbytes
    landing.fill(source.nbytes)
    assert landing.view == source


def test_a_tail_begins_behind_the_skipped_bytes() -> None:
    whole = Source(95)
    tail = whole.tail(15)
    tail.fill(5)
    assert (tail.nbytes, bytes(tail.view[:5])) == (80, DATA[15:20])
    tail.fill(80)
    assert tail.view == DATA[15:95]


def test_a_tail_pulls_about_a_piece_more_than_it_skips() -> None:
    """The reader of a tail must not wait for the whole."""
    data = memoryview(DATA * (8 * PIECE_NBYTES // len(DATA)))
    whole = Copied(data, memoryview(bytearray(data.nbytes)))
    tail = Tail(whole, 100)
    tail.fill(1)
    assert 1 <= tail.filled <= PIECE_NBYTES
    assert whole.filled <= 2 * PIECE_NBYTES
    tail.fill(tail.nbytes)
    assert tail.view == data[100:]


def test_a_tail_knows_what_was_there_before_it() -> None:
    whole = Source(95)
    whole.fill(30)
    assert (whole.tail(10).filled, whole.tail(40).filled) == (20, 0)


def test_a_tail_fails_as_the_whole_does() -> None:
    whole = failing_at(50, TierUnavailableError("the peer is gone"))
    tail = whole.tail(15)
    for _ in range(2):
        with pytest.raises(TierUnavailableError, match="the peer is gone"):
            tail.fill(80)
    assert (tail.has_failed, whole.has_failed) == (True, True)


def test_closing_a_tail_closes_the_whole() -> None:
    whole = Source(95)
    whole.tail(15).close()
    assert whole.n_ends == 1
    with pytest.raises(ClosedError):
        whole.fill(1)


def test_whoever_waits_for_a_tail_is_told_by_its_last_byte() -> None:
    whole, calls = Source(95), list[int]()
    tail = whole.tail(15)
    tail.when_whole(lambda: calls.append(tail.filled))
    tail.fill(80)
    assert calls == [80]
