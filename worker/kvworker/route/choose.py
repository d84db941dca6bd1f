"""Which of several workers answers a question soonest: the bytes that it lacks, brought at its pace, and what waits there already.

Pure: everything that a choice depends on is an argument. The idea of weighing what a worker holds against how busy it is has been
described for prefix caches by Preble (Srivatsa et al., 2024, section 3) and SGLang (Zheng et al., 2024, section 3); here it is in seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PassageKey = tuple[str, str]
"""Whose passage, and its identity: a tenant's copies are of no use to another."""

STALE_S = 5.0
"""Beyond this age, what is known of a worker's memory is not believed; who answers no health check is not asked at all."""

_AS_GOOD = 1.25


@dataclass(frozen=True)
class WorkerState:
    """What is known of one worker at one moment.

    Parameters
    ----------
    name : str
        Names the worker among its kind.
    held : mapping
        Which of the wanted passages it has at hand, in device memory, and their bytes.
    free_bytes : int
        Room that is left beside what it holds.
    n_waiting : int
        Requests that it was given and has not answered.
    wait_s : float
        Seconds by which each request that it had already held up the first token of a later one, lately. Workers take turns at every step
        of every answer, so this is far less than a request takes as a whole.
    bytes_per_s : float
        Pace at which it brought lately what it did not have at hand, by loading or by computing. Above 0.
    is_serving, is_draining : bool
        Whether it answers, and whether it only finishes what it has.
    age_s : float
        Seconds since it last gave a sign of life.
    """

    name: str
    held: Mapping[PassageKey, int]
    free_bytes: int = 0
    n_waiting: int = 0
    wait_s: float = 0.0
    bytes_per_s: float = 1.0
    is_serving: bool = True
    is_draining: bool = False
    age_s: float = 0.0


def missing_nbytes(state: WorkerState, wanted: Mapping[PassageKey, int]) -> int:
    """Return how many of the wanted bytes a worker would have to bring; all of them where what is known of it is stale."""
    held = state.held if state.age_s <= STALE_S else {}
    return sum(nbytes for key, nbytes in wanted.items() if key not in held)


def score(state: WorkerState, wanted: Mapping[PassageKey, int]) -> float:
    """Return the seconds until a worker can give the first token: waiting for its other requests, and bringing what it lacks.

    What is driven out for that will have to be brought again, so bytes for which there is no room count twice.
    """
    missing = missing_nbytes(state, wanted)
    driven_out = max(0, missing - state.free_bytes)
    return state.n_waiting * state.wait_s + (missing + driven_out) / state.bytes_per_s


def choose(states: Iterable[WorkerState], wanted: Mapping[PassageKey, int]) -> str | None:
    """Return the name of the worker with the lowest score among those that take requests; None if there is none.

    Scores within a quarter of the lowest are as good, for paces are measured and vary by that. Among them whoever lacks the fewest bytes is
    taken, then who has room for them, then who has the fewest requests, and then the one that the first wanted passage draws by its hash:
    nobody has it yet, and whoever asks for it next should come to the same worker, wherever the choice is made.
    """
    scored = [(score(state, wanted), state) for state in states if state.is_serving and not state.is_draining]
    lowest = min((seconds for seconds, _ in scored), default=0.0)
    equals = [state for seconds, state in scored if seconds <= lowest * _AS_GOOD]
    first = next(iter(wanted), ("", ""))
    best = min(equals, key=lambda state: _rank(state, missing_nbytes(state, wanted), first), default=None)
    return best.name if best else None


def _rank(state: WorkerState, missing: int, first: PassageKey) -> tuple[int, bool, int, bytes]:
    """Return what decides among equals; the lowest wins."""
    return missing, missing > state.free_bytes, state.n_waiting, _draw(state.name, first)


def _draw(name: str, passage: PassageKey) -> bytes:
    """Return the worker's draw for a passage; the lowest wins, and a worker more or less changes no draw of the others."""
    return hashlib.blake2b("\0".join((name, *passage)).encode(), digest_size=8).digest()
