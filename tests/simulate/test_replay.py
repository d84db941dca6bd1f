"""Replays against small scenarios whose numbers can be worked out by hand, and bounds that hold for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.errors import InvalidInputError
from kvstore.planners.cost import CostModel
from kvstore.planners.linear import LinearCost
from kvstore.simulate.replay import SimulatedStore, simulate
from kvstore.simulate.scenario import Scenario
from kvstore.simulate.trace import Asked, TraceRequest
from kvstore.simulate.zipf import Zipf

COSTS = CostModel(  # 1 ms a row, 1 ms a pass; memory 0.1 ms and disk 1 ms a KiB, nothing else costs anything
    {
        "prefill": LinearCost((1e-3, 1e-3, 0.0)),
        "splice": LinearCost((0.0, 0.0)),
        "codec raw": LinearCost((0.0, 0.0)),
        "tier memory": LinearCost((0.0, 1e-4 / 1024)),
        "tier disk": LinearCost((0.0, 1e-3 / 1024)),
        "tier redis": LinearCost((0.0, 1e-3 / 1024)),
    }
)
CHUNK = 1024 * 10 + 1024  # bytes of a passage of 10 tokens at 1 KiB each, behind a record's head


def scenario(memory: int = 0, disk: int = 0, redis: int = 0, planner: str = "always_load", eviction: str = "lru") -> Scenario:
    """Return a setting with room for so many passages of ten tokens in each tier."""
    sizes = {"memory": memory * CHUNK, "disk": disk * CHUNK, "redis": redis * CHUNK}
    return Scenario("test", **sizes, eviction=eviction, planner=planner, bytes_per_token=1024.0, patch_rows=2, costs=COSTS)  # type: ignore[arg-type]


def asks(*requests: str) -> list[TraceRequest]:
    """Return requests, each a string of the names of passages of ten tokens."""
    return [TraceRequest(float(i), tuple(Asked(key, 10) for key in names), 5) for i, names in enumerate(requests)]


def test_a_request_costs_what_the_model_says() -> None:
    """Computed: 1 + 15 rows. Loaded: 11 KiB of memory one after the other with 1 pass, 2 patched rows and 5 of the question."""
    outcome = simulate(asks("a", "a"), scenario(memory=1))
    assert outcome.ttft_s == pytest.approx([16e-3, 1.1e-3 + 8e-3])
    assert outcome.saved_s == pytest.approx(8e-3)
    assert (outcome.asked, outcome.found, outcome.hit_share, outcome.loaded_share) == (2, 1, 0.5, 0.5)
    assert (outcome.read_nbytes["memory"], outcome.written_nbytes["memory"]) == (CHUNK, CHUNK)
    assert (outcome.mean_ttft_s, outcome.p95_ttft_s) == pytest.approx((12.55e-3, 16e-3))


def test_the_eviction_policy_decides_what_is_found() -> None:
    """LRU drops `a` for `b` and `c`; LFU keeps what was read twice."""
    requests = asks("a", "a", "b", "c", "a")
    assert simulate(requests, scenario(memory=2)).found == 1
    assert simulate(requests, scenario(memory=2, eviction="lfu")).found == 2


def test_what_memory_lost_is_found_on_disk_and_copied_up() -> None:
    """The second read of `a` comes from disk and the third from memory."""
    outcome = simulate(asks("a", "b", "a", "a"), scenario(memory=1, disk=2))
    assert outcome.read_nbytes == {"disk": CHUNK, "memory": CHUNK}
    assert outcome.written_nbytes == {"disk": 2 * CHUNK, "memory": 3 * CHUNK}


def test_redis_is_written_behind_and_evicts_by_itself() -> None:
    """It takes what the local tier takes."""
    outcome = simulate(asks("a", "b", "a", "c", "b", "a"), scenario(memory=1, redis=2))
    assert outcome.read_nbytes["redis"] == CHUNK  # `b` was the least recently used of Redis when `c` came; it drops `a` in its turn
    assert outcome.found == 1


def test_what_the_planner_computes_is_not_read() -> None:
    """It counts as found and not as loaded, and saves nothing."""
    outcome = simulate(asks("a", "a"), scenario(memory=1, planner="always_compute"))
    assert (outcome.found, outcome.loaded_tokens, outcome.saved_s, outcome.read_nbytes) == (1, 0, 0.0, {})


def test_a_passage_that_fits_nowhere_is_computed_each_time() -> None:
    """As a worker does whose store refuses it."""
    big = [TraceRequest(0.0, (Asked("big", 1000),), 1)] * 2
    assert (simulate(big, scenario(memory=1)).found, simulate(big, scenario(memory=1)).written_nbytes) == (0, {})


@settings(derandomize=True, max_examples=40)
@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=4).map("".join), max_size=30),
    st.sampled_from(["arc", "lfu", "lru", "value"]),
    st.sampled_from(["always_compute", "always_load", "min_cost"]),
    st.integers(1, 4),
    st.integers(0, 6),
)
def test_books_balance(requests: Sequence[str], eviction: str, planner: str, memory: int, disk: int) -> None:
    """Never more found than asked, never more loaded than found, never over a capacity, and the same again the second time."""
    setting = scenario(memory, disk, planner=planner, eviction=eviction)
    outcome = simulate(asks(*requests), setting)
    assert outcome.loaded_tokens <= outcome.found_tokens <= outcome.asked_tokens == 10 * outcome.asked
    assert len(outcome.ttft_s) == len(requests)
    assert all(seconds > 0 for seconds in outcome.ttft_s)
    assert outcome == simulate(asks(*requests), setting)
    store = SimulatedStore(setting)
    for name in "".join(requests):
        store.put(Asked(name, 10))
        assert all(shelf.used_bytes <= shelf.capacity_bytes for shelf in store._shelves)


def test_twice_the_memory_never_finds_less_with_lru() -> None:
    """LRU has the inclusion property for passages of one size."""
    trace = Zipf(requests=300, shortest=10, longest=10).trace()
    found = [simulate(trace, scenario(memory=size)).found for size in (25, 50, 100, 200)]
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ("memory=2x", "memory", 20 * CHUNK),
        ("memory=1KiB", "memory", 1024),
        ("disk=3MiB,eviction=arc", "disk", 3 << 20),
        ("codec_factor=0.25", "bytes_per_token", 256.0),
        ("planner=min_cost,patch_rows=7", "patch_rows", 7),
    ],
)
def test_a_change_changes_what_it_names(change: str, name: str, value: float) -> None:
    """And is the label of its row."""
    changed = scenario(memory=10).changed(change)
    assert getattr(changed, name) == value
    assert changed.label == change


def test_a_faster_link_brings_tokens_sooner() -> None:
    """A speed may be a factor or bytes per second."""
    setting, trace = scenario(memory=1), asks("a", "a")
    slow, fast = (simulate(trace, setting.changed(f"memory_speed={speed}")).ttft_s[1] for speed in ("0.5x", "1GB"))
    assert slow == pytest.approx(2.2e-3 + 8e-3)
    assert fast == pytest.approx(CHUNK / 1e9 + 8e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("colour=red", "known are memory, disk"),
        ("memory=ax", "not a value of memory"),
        ("memory=nanx", "not a value of memory"),
        ("memory=infx", "not a value of memory"),
        ("memory=0", "capacity above 0"),
        ("memory=many", "not a size"),
        ("disk_speed=0", "not a value of disk_speed"),
        ("codec_factor=0", "bytes_per_token is above 0"),
        ("patch_rows=-1", "patch_rows at least 0"),
    ],
)
def test_a_change_that_is_none_is_refused(change: str, message: str) -> None:
    """By what is known or what it should be."""
    with pytest.raises(InvalidInputError, match=message):
        scenario(memory=1).changed(change)


def test_an_unknown_policy_or_planner_is_refused_with_the_known_ones() -> None:
    """The same as a worker would."""
    for field in ("eviction", "planner"):
        with pytest.raises(InvalidInputError, match=r"no .* 'newest'; known: "):
            simulate(asks("a"), scenario(memory=1).changed(f"{field}=newest"))


def test_costs_that_lack_a_step_are_refused() -> None:
    """At once for the fastest tier, in the replay for one that is asked later; nothing unknown is taken to be free."""
    with pytest.raises(InvalidInputError, match="the costs lack"):
        replace(scenario(memory=1), costs=CostModel())
    unread = CostModel({name: cost for name, cost in COSTS.costs.items() if name != "tier disk"})
    with pytest.raises(InvalidInputError, match="a cost that the model lacks"):
        simulate(asks("a", "b", "a"), replace(scenario(memory=1, disk=2), costs=unread))
