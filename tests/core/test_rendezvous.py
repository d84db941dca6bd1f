"""Rendezvous hashing: balanced, agreed upon, and still where it need not move."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from kvstore.core.rendezvous import ranked

KEYS = [seeded.randbytes(96) for seeded in [random.Random(11)] for _ in range(20_000)]


def servers(n: int) -> list[str]:
    """Return the names of n servers."""
    return [f"store-{i}.example.test:7420" for i in range(n)]


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_every_server_gets_its_share(n: int) -> None:
    """Six standard deviations of a fair die: sqrt(20000 * p * (1 - p)) is at most 71 keys."""
    shares = Counter(ranked(key, servers(n))[0] for key in KEYS)
    p = 1 / n
    assert max(abs(shares[s] - len(KEYS) * p) for s in servers(n)) < 6 * (len(KEYS) * p * (1 - p)) ** 0.5


def test_the_second_rank_is_as_balanced_as_the_first() -> None:
    """A server that leaves must not hand all of its keys to one other."""
    lost = [ranked(key, servers(4)) for key in KEYS]
    heirs = Counter(order[1] for order in lost if order[0] == servers(4)[0])
    assert max(heirs.values()) < 1.15 * min(heirs.values())


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_a_server_that_joins_takes_its_share_and_moves_nothing_else(n: int) -> None:
    """What moves, moves to the new one; the old owner comes second."""
    before, after = servers(n), servers(n + 1)
    moved = 0
    for key in KEYS[:5000]:
        old, new = ranked(key, before), ranked(key, after)
        if old[0] != new[0]:
            moved += 1
            assert (new[0], new[1]) == (after[-1], old[0])
    assert abs(moved / 5000 - 1 / (n + 1)) < 0.05


def test_a_server_that_leaves_moves_only_its_own_keys_to_the_second_in_rank() -> None:
    """Which is where replicas lie."""
    everyone = servers(4)
    for key in KEYS[:2000]:
        full = ranked(key, everyone)
        assert ranked(key, [s for s in everyone if s != full[0]]) == full[1:]


def test_the_order_of_the_list_does_not_matter() -> None:
    """Every client has read its own list."""
    for key in KEYS[:200]:
        assert ranked(key, servers(5)) == ranked(key, servers(5)[::-1])


def test_a_key_is_where_it_was_in_every_version() -> None:
    """Golden: another score would be a miss of everything that is stored."""
    assert ranked(bytes(96), ["a", "b", "c"]) == ["b", "c", "a"]
