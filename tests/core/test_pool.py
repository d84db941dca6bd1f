"""The pool lends warm memory: one holder at a time, for as long as any view of it is alive, and never more kept than allowed."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvstore.core.pool import SMALL_NBYTES, BufferPool, size_class

MIB = 1 << 20


def address(view: memoryview) -> int:
    """Return where a writable view lies."""
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(view))


@pytest.mark.parametrize("nbytes", [0, 1, SMALL_NBYTES - 1, SMALL_NBYTES, SMALL_NBYTES + 1, 3 * MIB, 3 * MIB + 1])
def test_a_buffer_is_writable_and_as_long_as_asked(nbytes: int) -> None:
    view = BufferPool(8 * MIB).take(nbytes)
    view[:] = b"\1" * nbytes
    assert (view.nbytes, view.readonly, view.format, view.ndim) == (nbytes, False, "B", 1)


@pytest.mark.parametrize("nbytes", [SMALL_NBYTES, 100_001, 5 * MIB])
def test_a_large_buffer_begins_at_a_page(nbytes: int) -> None:
    """Direct I/O and a GPU's copies need it."""
    assert address(BufferPool(8 * MIB).take(nbytes)) % 4096 == 0


@pytest.mark.parametrize(
    ("nbytes", "size"),
    [(1, 1), (2, 2), (64, 64), (65, 96), (96, 96), (97, 128), (MIB, MIB), (MIB + 1, MIB * 3 // 2), (33 * MIB, 48 * MIB)],
)
def test_sizes_are_powers_of_two_and_one_and_a_half_of_them(nbytes: int, size: int) -> None:
    assert size_class(nbytes) == size


def test_at_most_a_third_of_a_block_is_unused() -> None:
    rng = random.Random(0)
    sizes = [rng.randint(SMALL_NBYTES, 64 * MIB) for _ in range(2000)]
    assert all(nbytes <= size_class(nbytes) < nbytes * 1.5 for nbytes in sizes)


def test_a_buffer_that_was_dropped_is_lent_again() -> None:
    """Its pages are touched already: that is what the pool is for."""
    pool = BufferPool(8 * MIB)
    first = pool.take(MIB)
    where = address(first)
    del first
    assert address(pool.take(MIB - 5)) == where


def test_buffers_of_another_size_are_not_mixed_up() -> None:
    pool = BufferPool(8 * MIB)
    pool.take(MIB)
    view = pool.take(2 * MIB)
    view[:] = bytes(2 * MIB)
    assert (pool.lent_nbytes, pool.free_nbytes) == (2 * MIB, MIB)


@pytest.mark.parametrize("keep", ["slice", "read-only", "cast", "bytes of the middle"])
def test_any_view_keeps_a_block_out_of_the_pool(keep: str) -> None:
    """A reader that holds one part of a chunk must not see the next chunk in it."""
    pool = BufferPool(8 * MIB)
    view = pool.take(MIB)
    view[:] = b"\7" * MIB
    kept = {"slice": view[10:20], "read-only": view.toreadonly(), "cast": view.cast("I"), "bytes of the middle": view[500:600][5:6]}[keep]
    del view
    other = pool.take(MIB)
    other[:] = bytes(MIB)
    assert set(bytes(kept)) == {7}
    assert pool.lent_nbytes == 2 * MIB
    del kept
    assert (pool.lent_nbytes, pool.free_nbytes) == (MIB, MIB)


def test_no_more_is_kept_than_the_capacity() -> None:
    pool = BufferPool(3 * MIB)
    held = [pool.take(MIB) for _ in range(5)]
    assert (pool.lent_nbytes, pool.free_nbytes) == (5 * MIB, 0)
    held.clear()
    assert (pool.lent_nbytes, pool.free_nbytes) == (0, 3 * MIB)


def test_a_block_larger_than_the_capacity_is_lent_and_not_kept() -> None:
    pool = BufferPool(MIB)
    pool.take(2 * MIB)
    assert (pool.lent_nbytes, pool.free_nbytes) == (0, 0)


def test_small_buffers_are_not_counted() -> None:
    """The allocator keeps those warm itself."""
    pool = BufferPool(MIB)
    held = pool.take(SMALL_NBYTES - 1)
    assert (held.nbytes, pool.lent_nbytes) == (SMALL_NBYTES - 1, 0)


def test_a_block_is_pinned_once_however_often_it_is_lent() -> None:
    """Registering memory with a GPU's driver costs more than a copy."""
    pinned: list[int] = []
    pool = BufferPool(8 * MIB, pin=lambda block: pinned.append(block.nbytes))
    for _ in range(5):
        pool.take(MIB)
    assert pinned == [MIB]


def test_a_closed_pool_keeps_nothing_and_leaves_what_is_lent() -> None:
    pool = BufferPool(8 * MIB)
    held = pool.take(MIB)
    held[:] = b"\5" * MIB
    pool.take(2 * MIB)
    pool.close()
    assert (pool.free_nbytes, held[-1]) == (0, 5)


def test_a_buffer_outlives_its_pool() -> None:
    held = BufferPool(8 * MIB).take(MIB)
    held[:] = b"\5" * MIB
    assert bytes(held) == b"\5" * MIB


def test_a_forked_child_writes_into_memory_of_its_own() -> None:
    """A child that is about to start another program still runs this code for a moment."""
    code = (
        "import os; from kvstore.core.pool import BufferPool; view = BufferPool(1 << 20).take(1 << 20); view[0] = 1; child = os.fork()\n"
        "if not child: view[0] = 2; os._exit(0)\n"
        "os.waitpid(child, 0); print(view[0])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def test_two_threads_never_hold_the_same_block() -> None:
    """Each writes its own number everywhere, and finds nothing else; the counters may be read meanwhile."""
    pool = BufferPool(4 * MIB)

    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(150):
            view = pool.take(rng.randint(SMALL_NBYTES, 4 * SMALL_NBYTES))
            mark = bytes([number]) * view.nbytes
            view[:] = mark
            assert pool.lent_nbytes >= view.nbytes
            assert view == mark

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert pool.lent_nbytes == 0
    assert 0 < pool.free_nbytes <= 4 * MIB


def test_a_thousand_buffers_leave_nothing_mapped_beyond_the_capacity() -> None:
    """A leak of one block per chunk would end the process within minutes."""
    pool = BufferPool(4 * MIB)
    before = mapped_nbytes()
    for n in range(1000):
        pool.take(MIB + n)
    assert pool.lent_nbytes == 0
    assert mapped_nbytes() - before <= 8 * MIB


def mapped_nbytes() -> int:
    """Return the bytes of address space of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
