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


@dataclass(frozen=True)
class WorkerState:
    """What is known of one worker at one moment.

    Parameters
    ----------
    name : str
        Names the worker among its kind.
    held : mapping
        Which of the wanted passages it has at hand, in device memory, and their bytes.
    n_waiting : int
        Requests that it was given and has not answered.
    request_s : float
        Seconds for which one request keeps it busy, lately.
    bytes_per_s : float
        Pace at which it brought lately what it did not have at hand, by loading or by computing. Above 0.
    is_serving, is_draining : bool
        Whether it answers, and whether it only finishes what it has.
    age_s : float
        Seconds since it last gave a sign of life.
    """

    name: str
    held: Mapping[PassageKey, int]
    n_waiting: int = 0
    request_s: float = 0.0
    bytes_per_s: float = 1.0
    is_serving: bool = True
    is_draining: bool = False
    age_s: float = 0.0


def missing_nbytes(state: WorkerState, wanted: Mapping[PassageKey, int]) -> int:
    """Return how many of the wanted bytes a worker would have to bring; all of them where what is known of it is stale."""
    held = state.held if state.age_s <= STALE_S else {}
    return sum(nbytes for key, nbytes in wanted.items() if key not in held)


def score(state: WorkerState, wanted: Mapping[PassageKey, int]) -> float:
    """Return the seconds until a worker has everything that a question wants at hand: its queue, and bringing what it lacks."""
    return state.n_waiting * state.request_s + missing_nbytes(state, wanted) / state.bytes_per_s


def choose(states: Iterable[WorkerState], wanted: Mapping[PassageKey, int]) -> str | None:
    """Return the name of the worker with the lowest score among those that take requests; None if there is none.

    Of equals the one with fewer requests is taken, and then the one that the first wanted passage draws by its hash: nobody has it yet,
    and whoever asks for it next should come to the same worker, wherever the choice is made.
    """
    able = [state for state in states if state.is_serving and not state.is_draining]
    first = next(iter(wanted), ("", ""))
    best = min(able, key=lambda state: (score(state, wanted), state.n_waiting, _draw(state.name, first)), default=None)
    return best.name if best else None


def _draw(name: str, passage: PassageKey) -> bytes:
    """Return the worker's draw for a passage; the lowest wins, and a worker more or less changes no draw of the others."""
    return hashlib.blake2b("\0".join((name, *passage)).encode(), digest_size=8).digest()
