"""Share the chunks of a prompt out between computing and loading: what serving plans by, and what the race plans again by.

Computing goes through the prompt from its front, because a chunk's rows need all earlier rows in the cache; every lane (a tier) loads its
own share beside it, in the order of the prompt where computing waits for it, else from the end (`order_of_loads`). The question comes last,
in one step that also lands and repairs what was loaded, layer by layer with what is still on its way.

P1 finds the best prefix to compute. Here any set may be computed, because a chunk that loads much quicker than its neighbours is worth
loading wherever it lies. So two families are tried, and computing all and loading all with them: prefixes, and sets by seconds of loading
per second of computing saved, which solves the relaxation over all sets and lanes. The timeline decides between them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, combinations
from typing import NamedTuple

_LEAST_GAIN = 1e-9  # less is rounding
NOWHERE = -1  # the lane of a chunk that can't be loaded


class Work(NamedTuple):
    """A request in numbers, one entry per chunk in the order of the prompt; all in seconds.

    Parameters
    ----------
    compute_s : sequence of float
        Computing the chunk behind all chunks before it.
    lanes : sequence of int
        Which lane can load it, NOWHERE for none.
    load_s : sequence of float
        How long it keeps its lane busy; 0 for a chunk without lane.
    last_s : sequence of float
        What the last step takes longer when it was loaded: landing it in the cache and computing its repaired rows.
    question_s : float
        The last step with nothing to land.
    overlap : float
        Share of the last load that hides behind the last step: 1 - 1/G when the cache is filled in G layer groups.
    """

    compute_s: Sequence[float]
    lanes: Sequence[int]
    load_s: Sequence[float]
    last_s: Sequence[float]
    question_s: float = 0.0
    overlap: float = 0.0


class Timeline(NamedTuple):
    """When a choice is done, and what it keeps the device and the busiest lane busy for."""

    seconds: float
    compute_s: float
    load_s: float


class Shares(NamedTuple):
    """`is_loaded[i]` tells for chunk i; the others are computed."""

    is_loaded: tuple[bool, ...]
    timeline: Timeline


def lay_out(work: Work, is_loaded: Sequence[bool], ready_s: Sequence[float]) -> Timeline:
    """Return when a choice is done, if every lane is free from its `ready_s` on and computing starts at 0."""
    done_s = list(ready_s)
    engine_s = computing_s = loaded_s = newest_s = 0.0
    last_s = work.question_s
    for compute_s, lane, load_s, after_s, loads in zip(work.compute_s, work.lanes, work.load_s, work.last_s, is_loaded, strict=True):
        if loads:
            last_s += after_s
            done_s[lane] += load_s
            if done_s[lane] >= loaded_s:
                loaded_s, newest_s = done_s[lane], load_s
        else:
            computing_s += compute_s
            engine_s = max(engine_s, loaded_s) + compute_s
    hidden_s = work.overlap * min(newest_s, last_s)
    return Timeline(max(engine_s, loaded_s - hidden_s) + last_s, computing_s + last_s, loaded_s)


def share_out(work: Work, ready_s: Sequence[float], most_visited: int = 3000) -> Shares:
    """Return the best choice that was found; of equally good ones, the one that loads for less long.

    Never later by the timeline than computing all or loading all that is stored and saves computing.

    Parameters
    ----------
    ready_s : sequence of float
        Seconds until each lane is free, negative when it is free before computing can start, infinite for a lane that does not answer.
    most_visited : int
        Chunks of timelines that the search for better exchanges may look at: about 0.25 us each.
    """
    worth = [lane != NOWHERE and c > a for c, lane, a in zip(work.compute_s, work.lanes, work.last_s, strict=True)]
    none = [False] * len(worth)
    choices = [none, worth, _best_prefix(work, worth, ready_s), *_by_ratio(work, worth, ready_s)] if any(worth) else [none]
    laid = [(lay_out(work, choice, ready_s), choice) for choice in choices]
    timeline, best = min(laid, key=lambda found: (found[0].seconds, found[0].load_s))
    return _improve(work, Shares(tuple(best), timeline), worth, ready_s, most_visited)


def _improve(work: Work, shares: Shares, worth: Sequence[bool], ready_s: Sequence[float], most_visited: int) -> Shares:
    """Return the choice after the exchanges of one or two chunks that helped, as many as `most_visited` chunks of timelines allow.

    The families leave a gap of a chunk or so, which is much of a short prompt and nothing of a long one.
    """
    tries_left = most_visited // len(worth) if worth else 0
    movable = [i for i, is_worth in enumerate(worth) if is_worth]
    exchanges = [(i, i) for i in movable] + list(combinations(movable, 2)) if len(movable) <= tries_left else []
    kept = 0
    while exchanges and kept < len(exchanges) and tries_left > 0:
        one, other = exchanges[kept]
        kept += 1
        if one != other and shares.is_loaded[one] == shares.is_loaded[other]:
            continue
        tries_left -= 1
        choice = [loads != (i in (one, other)) for i, loads in enumerate(shares.is_loaded)]
        timeline = lay_out(work, choice, ready_s)
        if timeline.seconds < shares.timeline.seconds * (1 - _LEAST_GAIN):
            shares, kept = Shares(tuple(choice), timeline), 0
    return shares


def order_of_loads(is_loaded: Sequence[bool]) -> list[int]:
    """Return the chunks to load in the order in which to ask for them.

    What lies before a computed chunk comes in the order of the prompt, because computing waits for it; the rest from the end, so that
    whoever computes from the front meets whoever loads from the back.
    """
    last_computed = max((i for i, loads in enumerate(is_loaded) if not loads), default=-1)
    before = [i for i in range(last_computed) if is_loaded[i]]
    return [*before, *range(len(is_loaded) - 1, last_computed, -1)]


def _best_prefix(work: Work, worth: Sequence[bool], ready_s: Sequence[float]) -> list[bool]:
    """Return the choice that computes a prefix, and behind it only what must be."""
    done_s, used = list(ready_s), 0.0
    computing_s, last_s, newest_s = sum(work.compute_s), work.question_s, 0.0
    best_s, best = computing_s + last_s, len(worth)
    for k in range(len(worth) - 1, -1, -1):
        if not worth[k]:
            continue
        lane = work.lanes[k]
        computing_s -= work.compute_s[k]
        last_s += work.last_s[k]
        done_s[lane] += work.load_s[k]
        if done_s[lane] >= used:
            used, newest_s = done_s[lane], work.load_s[k]
        seconds = max(computing_s, used - work.overlap * min(newest_s, last_s)) + last_s
        if seconds < best_s:
            best_s, best = seconds, k
        if used > computing_s + last_s:
            break
    return [False] * best + list(worth[best:])


def _by_ratio(work: Work, worth: Sequence[bool], ready_s: Sequence[float]) -> list[list[bool]]:
    """Return the two choices on either side of where loading takes as long as computing.

    Every lane takes first what costs it least per second that is saved. The deadline of all lanes is the only unknown: the later, the more
    is loaded and the less computed.
    """
    by_lane: list[list[int]] = [[] for _ in ready_s]
    for i, is_worth in enumerate(worth):
        if is_worth:
            by_lane[work.lanes[i]].append(i)
    for chunks in by_lane:
        chunks.sort(key=lambda i: (work.load_s[i] / (work.compute_s[i] - work.last_s[i]), -i))
    loading = [list(accumulate((work.load_s[i] for i in chunks), initial=s))[1:] for chunks, s in zip(by_lane, ready_s, strict=True)]
    saved = [list(accumulate((work.compute_s[i] for i in chunks), initial=0.0)) for chunks in by_lane]
    all_s = sum(work.compute_s)
    deadlines = sorted(s for lane in loading for s in lane)

    def computing_s(deadline_s: float) -> float:
        return all_s - sum(s[bisect_right(ends, deadline_s)] for s, ends in zip(saved, loading, strict=True))

    crossing = bisect_left(deadlines, True, key=lambda s: computing_s(s) <= s)
    return [_until(deadlines[i], by_lane, loading, len(worth)) for i in (crossing - 1, crossing) if 0 <= i < len(deadlines)]


def _until(deadline_s: float, by_lane: Sequence[Sequence[int]], loading: Sequence[Sequence[float]], n: int) -> list[bool]:
    """Return the choice that loads whatever its lane has done by the deadline."""
    choice = [False] * n
    for chunks, ends in zip(by_lane, loading, strict=True):
        for i in chunks[: bisect_right(ends, deadline_s)]:
            choice[i] = True
    return choice
