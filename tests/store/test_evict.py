"""Eviction policies, each against the plainest way to write it down."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.discovery import known_names
from kvstore.core.errors import ConfigError
from kvstore.store.evict.arc import Arc
from kvstore.store.evict.policy import Item, Policy, make_policy
from tests.store.textbook_arc import TextbookArc

NAMES = ["arc", "lfu", "lru", "value"]
requests = st.lists(st.integers(0, 11), min_size=1, max_size=120)


def item(number: int, nbytes: int = 1, recompute_s: float = 1.0) -> Item:
    """Return an item whose key says its number."""
    return Item(bytes([number]), nbytes, recompute_s)


def request(policy: Policy, wanted: Item, pinned: frozenset[bytes] = frozenset()) -> list[Item] | None:
    """Read an item, or insert it behind an eviction; return the victims, None when leases leave no room."""
    if wanted.key in policy:
        policy.on_hit(wanted.key)
        return []
    policy.on_miss(wanted.key)
    over = policy.used_bytes + wanted.nbytes - policy.capacity_bytes
    victims = policy.evict(over, pinned) if over > 0 else []
    if over > 0 and not victims:
        policy.on_remove(wanted.key)
        return None
    policy.on_insert(wanted)
    return victims


def test_policies_are_found_by_file_name() -> None:
    """A new one is one file."""
    assert known_names("kvstore.store.evict") == NAMES
    with pytest.raises(ConfigError, match="no eviction policy 'newest'; known: arc, lfu, lru, value"):
        make_policy("newest", 10)


@pytest.mark.parametrize("name", NAMES)
@settings(derandomize=True, max_examples=60)
@given(wanted=st.lists(st.tuples(st.integers(0, 15), st.sets(st.integers(0, 15), max_size=6)), max_size=80))
def test_a_policy_keeps_its_books_and_never_evicts_a_pinned_item(name: str, wanted: list[tuple[int, set[int]]]) -> None:
    """Victims were there, are not pinned, free enough, and no more than needed: without the last one it would not be enough."""
    policy, here = make_policy(name, 40), {}
    for number, pins in wanted:
        pinned = frozenset(bytes([n]) for n in pins)
        new = item(number, 1 + number % 7, number % 3)
        over = sum(i.nbytes for i in here.values()) + new.nbytes - 40
        victims = request(policy, new, pinned)
        free = sum(i.nbytes for i in here.values() if i.key not in pinned)
        assert (victims is None) == (new.key not in here and over > free)
        for victim in victims or []:
            assert here.pop(victim.key) == victim
            assert victim.key not in pinned
        if victims:
            assert sum(v.nbytes for v in victims) >= over > sum(v.nbytes for v in victims[:-1])
        if victims is not None:
            here[new.key] = new
        assert (len(policy), policy.used_bytes) == (len(here), sum(i.nbytes for i in here.values()))


@pytest.mark.parametrize("name", NAMES)
def test_a_removed_item_is_never_a_victim(name: str) -> None:
    """It left for another reason; choosing it would free nothing."""
    policy = make_policy(name, 10)
    for number in range(10):
        request(policy, item(number))
    for number in range(0, 10, 2):
        policy.on_remove(bytes([number]))
    assert sorted(v.key[0] for v in policy.evict(5)) == [1, 3, 5, 7, 9]
    assert policy.evict(1) == []


@settings(derandomize=True, max_examples=60)
@given(requests)
def test_lru_evicts_what_was_read_longest_ago(wanted: list[int]) -> None:
    """The oracle is a list in order of use."""
    policy, order = make_policy("lru", 5), []
    for number in wanted:
        expected = [order.pop(0)] if number not in order and len(order) == 5 else []
        assert [v.key[0] for v in request(policy, item(number)) or []] == expected
        order = [n for n in order if n != number] + [number]


@settings(derandomize=True, max_examples=60)
@given(requests)
def test_lfu_evicts_what_was_read_least(wanted: list[int]) -> None:
    """The oracle scans all counts; ties go to the least recently used."""
    policy, seen = make_policy("lfu", 5), {}
    for tick, number in enumerate(wanted):
        worst = min(seen, key=lambda n: seen[n]) if number not in seen and len(seen) == 5 else None
        assert [v.key[0] for v in request(policy, item(number)) or []] == ([] if worst is None else [worst])
        if worst is not None:
            del seen[worst]
        seen[number] = (seen.get(number, (0, 0))[0] + 1, tick)


@settings(derandomize=True, max_examples=60)
@given(requests)
def test_value_evicts_the_fewest_seconds_saved_per_byte(wanted: list[int]) -> None:
    """The oracle keeps every read, halves each by its age, and scans: reads x seconds / bytes, a first insertion being half a read."""
    policy, here, reads, now = make_policy("value", 20), dict[int, Item](), dict[int, list[tuple[float, float]]](), 0.0

    def worth(n: int) -> float:
        return sum(count * 2 ** (at - now) for count, at in reads[n]) * here[n].recompute_s / here[n].nbytes

    for number in wanted:
        new = item(number, 1 + number % 5, 1 + number % 3)
        for victim in request(policy, new) or []:
            assert worth(victim.key[0]) <= min(map(worth, here)) * (1 + 1e-9)
            del here[victim.key[0]]
        now += 1 / (12 * 16)
        reads[number] = [*reads.get(number, []), (1.0 if number in reads else 0.5, now)]
        here[number] = new


def test_value_prefers_small_dear_chunks_and_forgets_old_fame() -> None:
    """What was read a hundred times long ago goes before what is read now."""
    policy = make_policy("value", 100)
    request(policy, item(1, 50, 1.0))
    request(policy, item(2, 50, 5.0))
    assert [v.key[0] for v in request(policy, item(3, 50, 2.0)) or []] == [1]
    for _ in range(100):
        policy.on_hit(bytes([2]))
    gone = [v.key[0] for number in range(3000) for v in request(policy, item(4 + number % 2, 50, 5.0)) or []]
    assert 2 in gone


def test_value_goes_on_counting_where_an_evicted_key_left_off() -> None:
    """One that comes back is read again and again; one that comes first may never be."""
    policy = make_policy("value", 2)
    for number in (1, 2, 1, 2, 3):
        request(policy, item(number))
    assert bytes([2]) in policy
    request(policy, item(1))
    assert sorted(n for n in (1, 2, 3) if bytes([n]) in policy) == [1, 2]


def test_value_evicts_what_nobody_measured_least_recently_used_first() -> None:
    """Nothing is known to be saved by it, however often it is read."""
    policy = make_policy("value", 3)
    for number, seconds in ((1, 0.0), (2, 0.0), (3, 1e-9), (1, 0.0)):
        request(policy, item(number, 1, seconds))
    assert [v.key[0] for v in policy.evict(3)] == [2, 1, 3]


def test_value_remembers_a_bounded_number_of_victims() -> None:
    """A store that runs for months must not grow with the keys it has seen."""
    policy = make_policy("value", 20)
    for number in range(5000):
        request(policy, Item(number.to_bytes(2, "big"), 1, 1.0))
    assert len(policy._ghosts) == 4 * 20  # type: ignore[attr-defined]


@settings(derandomize=True, max_examples=150)
@given(st.lists(st.integers(0, 14), max_size=200))
def test_arc_is_the_algorithm_of_the_paper_for_pages_of_one_size(wanted: list[int]) -> None:
    """Same victims and the same target as figure 4 written down with plain lists."""
    policy, book = Arc(6), TextbookArc(6)
    for number in wanted:
        victims = request(policy, item(number)) or []
        assert [v.key[0] for v in victims] == book.request(number)
        assert policy.target == pytest.approx(book.p)


def test_arc_keeps_what_is_read_twice_through_a_scan() -> None:
    """A scan of things that are read once costs LRU everything."""
    arc, lru = make_policy("arc", 10), make_policy("lru", 10)
    for policy in (arc, lru):
        for number in [*range(5), *range(5), *range(100, 130)]:
            request(policy, item(number))
    assert [bytes([n]) in arc for n in range(5)] == [True] * 5
    assert [bytes([n]) in lru for n in range(5)] == [False] * 5


def test_arc_moves_its_target_towards_the_side_whose_ghosts_return() -> None:
    """A returning victim of `recent` raises the target, one of `frequent` lowers it."""
    arc = Arc(4)
    for number in [0, 1, 0, 1, 2, 3, 4, 5]:  # 0 and 1 are frequent; 2 and 3 were evicted from recent
        request(arc, item(number))
    assert arc.target == 0
    request(arc, item(2))
    assert arc.target == 1
    for number in [3, 2, 3, 2, 3, 6, 7]:
        request(arc, item(number))
    before = arc.target
    request(arc, item(0))  # a ghost of frequent
    assert arc.target < before
