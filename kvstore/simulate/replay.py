"""Replay a trace: the real planners and eviction policies decide, a cost model stands for the model and the links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvstore.core.errors import CapacityError, InvalidInputError
from kvstore.planners.plan import Hits, Load, Offer, PassageAsk, Plan, Request
from kvstore.planners.planner import Planner, find_planner
from kvstore.planners.samples import PREFILL
from kvstore.simulate.scenario import Scenario
from kvstore.simulate.trace import Asked, TraceRequest
from kvstore.store import decide
from kvstore.store.evict.policy import Item, Policy, make_policy

_OVERHEAD_NBYTES = 1024  # of a record besides its codes: head, manifest, padding
_VARIANT = b"simulated"


@dataclass
class Outcome:
    """What a replay saw: passages and their tokens asked for, found and loaded, seconds, and bytes moved by tier.

    `saved_s` is what computing the loaded passages at their places would have taken, less what repairs them; `ttft_s` holds the predicted
    time of each request.
    """

    label: str
    asked: int = 0
    found: int = 0
    asked_tokens: int = 0
    found_tokens: int = 0
    loaded_tokens: int = 0
    saved_s: float = 0.0
    ttft_s: list[float] = field(default_factory=list)
    read_nbytes: Counter[str] = field(default_factory=Counter)
    written_nbytes: Counter[str] = field(default_factory=Counter)

    @property
    def hit_share(self) -> float:
        """Share of the passages' tokens that were stored when they were asked for."""
        return self.found_tokens / max(self.asked_tokens, 1)

    @property
    def loaded_share(self) -> float:
        """Share of the passages' tokens that the planner loaded."""
        return self.loaded_tokens / max(self.asked_tokens, 1)

    @property
    def mean_ttft_s(self) -> float:
        """Mean predicted time to the first token."""
        return sum(self.ttft_s) / max(len(self.ttft_s), 1)

    @property
    def p95_ttft_s(self) -> float:
        """The predicted time that 95 % of the requests do not exceed."""
        ordered = sorted(self.ttft_s)
        return ordered[(95 * len(ordered) + 99) // 100 - 1] if ordered else 0.0


def simulate(trace: Sequence[TraceRequest], scenario: Scenario) -> Outcome:
    """Replay requests one after the other and return what they met.

    A passage that is not stored is stored behind the answer, in every tier, as a worker does. Requests do not wait for each other, writing
    takes no time, and decoded copies on the device are left out.
    """
    store, planner, outcome = SimulatedStore(scenario), find_planner(scenario.planner), Outcome(scenario.label)
    for request in trace:
        _answer(request, store, planner, outcome)
    outcome.read_nbytes, outcome.written_nbytes = store.read_nbytes, store.written_nbytes
    return outcome


def _answer(request: TraceRequest, store: SimulatedStore, planner: Planner, outcome: Outcome) -> None:
    """Plan one request, load what the plan loads, and store what is missing."""
    scenario = store.scenario
    places = [store.find(asked.key) for asked in request.passages]
    plan = planner.plan(_ask(request, scenario.patch_rows), _offers(request, places, scenario), scenario.costs)
    _count(outcome, request, places, plan, scenario)
    for item in plan.items:
        position = places[item.index]
        if isinstance(item, Load) and position is not None:
            store.read(request.passages[item.index], position)
    for asked, position in zip(request.passages, places, strict=True):
        if position is None:
            store.put(asked)


def _ask(request: TraceRequest, patch_rows: int) -> Request:
    """Return what a planner is asked: the passages one behind the other."""
    asks, start = [], 0
    for index, asked in enumerate(request.passages):
        asks.append(PassageAsk(index, asked.n_tokens, start, min(patch_rows, asked.n_tokens)))
        start += asked.n_tokens
    return Request(tuple(asks), request.question_tokens)


def _offers(request: TraceRequest, places: Sequence[int | None], scenario: Scenario) -> Hits:
    """Return what the fastest tier that has it offers of each passage."""
    tiers = scenario.tiers
    return {
        index: [Offer(tiers[position].name, stored_nbytes(asked, scenario), _VARIANT, scenario.codec)]
        for index, (asked, position) in enumerate(zip(request.passages, places, strict=True))
        if position is not None
    }


def _count(outcome: Outcome, request: TraceRequest, places: Sequence[int | None], plan: Plan, scenario: Scenario) -> None:
    """Add one request to the outcome; raises InvalidInputError where a cost is unknown."""
    if plan.predicted_s is None:
        raise InvalidInputError("the plan rests on a cost that the model lacks: give --costs of a worker that has read from every tier")
    outcome.ttft_s.append(plan.predicted_s)
    for asked, position in zip(request.passages, places, strict=True):
        outcome.asked += 1
        outcome.asked_tokens += asked.n_tokens
        outcome.found += position is not None
        outcome.found_tokens += asked.n_tokens if position is not None else 0
    loaded = {item.index for item in plan.items if isinstance(item, Load)}
    start = 0
    for index, asked in enumerate(request.passages):
        if index in loaded:
            outcome.saved_s += _saved_s(asked.n_tokens, start, scenario)
            outcome.loaded_tokens += asked.n_tokens
        start += asked.n_tokens


def _saved_s(n_tokens: int, start: int, scenario: Scenario) -> float:
    """Return the seconds that the rows of a passage take which need not be computed, in a pass that is made anyway."""
    _, row_s, pair_s = scenario.costs.costs[PREFILL].coefficients
    return max(0, n_tokens - scenario.patch_rows) * (row_s + pair_s * (start + (n_tokens + 1) / 2))


def stored_nbytes(asked: Asked, scenario: Scenario) -> int:
    """Return the bytes that a passage takes in a tier."""
    return int(asked.n_tokens * scenario.bytes_per_token) + _OVERHEAD_NBYTES


class SimulatedStore:
    """Which tier holds what: the tiered store's decisions and policies without its bytes."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.read_nbytes: Counter[str] = Counter()
        self.written_nbytes: Counter[str] = Counter()
        self._infos = scenario.tiers
        self._shelves: list[Policy] = [
            make_policy("lru", scenario.redis) if info.is_remote else make_policy(scenario.eviction, info.capacity_bytes)
            for info in self._infos
        ]

    def find(self, key: str) -> int | None:
        """Return the position of the fastest tier that has it."""
        return next((position for position, shelf in enumerate(self._shelves) if key.encode() in shelf), None)

    def read(self, asked: Asked, position: int) -> None:
        """Read from a tier and copy up what is read."""
        item = self._item(asked)
        self.read_nbytes[self._infos[position].name] += item.nbytes
        self._shelves[position].on_hit(item.key)
        target = decide.place_promotion(self._infos, item.nbytes, position)
        if target is not None:
            self._insert(item, target)

    def put(self, asked: Asked) -> None:
        """Store a passage in every tier that could hold it; one that fits nowhere is left out."""
        item = self._item(asked)
        try:
            placement = decide.place_put(self._infos, item.nbytes)
        except CapacityError:
            return
        for position in placement.later:
            self._insert(item, position)

    def _insert(self, item: Item, position: int) -> None:
        """Write to one tier, evicting as needed."""
        shelf = self._shelves[position]
        if item.key in shelf or item.nbytes > shelf.capacity_bytes:
            return
        shelf.on_miss(item.key)
        over = shelf.used_bytes + item.nbytes - shelf.capacity_bytes
        if over > 0:
            shelf.evict(over)
        shelf.on_insert(item)
        self.written_nbytes[self._infos[position].name] += item.nbytes

    def _item(self, asked: Asked) -> Item:
        """Return what a policy weighs; the seconds are those of reading the passage alone, as a worker notes them."""
        seconds = self.scenario.costs.predict_prefill(asked.n_tokens, (asked.n_tokens + 1) / 2) or 0.0
        return Item(asked.key.encode(), stored_nbytes(asked, self.scenario), seconds)
