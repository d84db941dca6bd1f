"""What a trace is replayed against: tiers and their speed, policies, sizes and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from kvstore.core.errors import InvalidInputError
from kvstore.core.units import format_nbytes, parse_nbytes
from kvstore.planners.cost import CostModel
from kvstore.planners.linear import LinearCost
from kvstore.planners.samples import PREFILL, SPLICE, codec_subject, tier_subject
from kvstore.store.tier import TierInfo

CODEC = "raw"
TIERS = ("memory", "disk", "redis")
# 7B model on an A100: chunks of 512 tokens take 38.8 ms at the start of a prompt and 112.0 ms at chunk 63 (Cake, 2410.03065).
_ROW_S = 38.8e-3 / 512
_PAIR_S = (112.0e-3 - 38.8e-3) / (63 * 512 * 512)
_SPEEDS = {"memory": (50e-6, 10e9), "disk": (200e-6, 2e9), "redis": (500e-6, 1e9)}  # seconds per read, bytes per second


def assumed_costs() -> CostModel:
    """Return the costs that are used where nobody gives any: a 7B model on an A100 and ordinary tiers."""
    tiers = {tier_subject(name): LinearCost((fixed_s, 1 / speed)) for name, (fixed_s, speed) in _SPEEDS.items()}
    prefill = LinearCost((1e-3, _ROW_S, _PAIR_S))
    return CostModel({PREFILL: prefill, SPLICE: LinearCost((0.0, 1e-6)), codec_subject(CODEC): LinearCost((0.0, 0.0)), **tiers}, 0.9)


@dataclass(frozen=True)
class Scenario:
    """One setting to replay a trace against; a capacity of 0 means that there is no such tier.

    Parameters
    ----------
    label : str
        How its row is called.
    memory, disk, redis : int
        Capacities in bytes. The first two evict by `eviction`, Redis the least recently used.
    bytes_per_token : float
        Stored bytes of a chunk per token.
    patch_rows : int
        Rows at the start of a loaded passage that are computed again.
    codec : str
        The codec whose cost of decoding is used.
    """

    label: str = "as given"
    memory: int = 1 << 30
    disk: int = 0
    redis: int = 0
    eviction: str = "value"
    planner: str = "min_cost"
    bytes_per_token: float = 131072.0
    patch_rows: int = 4
    codec: str = CODEC
    costs: CostModel = field(default_factory=assumed_costs)

    def __post_init__(self) -> None:
        if min(self.memory, self.disk) < 0 or not self.memory + self.disk:
            raise InvalidInputError("a store needs a memory or a disk tier with a capacity above 0")
        if not 0 < self.bytes_per_token <= 1 << 30 or self.patch_rows < 0:
            raise InvalidInputError(f"bytes_per_token is above 0 and at most {1 << 30}, patch_rows at least 0: {self.bytes_per_token}")
        if self.costs.load_rates(self.tiers[0].name, self.codec) is None or PREFILL not in self.costs.costs:
            known = ", ".join(sorted(self.costs.costs))
            raise InvalidInputError(f"the costs lack prefill, splice, tier {self.tiers[0].name} or codec {self.codec}; they have {known}")

    @property
    def tiers(self) -> tuple[TierInfo, ...]:
        """The tiers that there are, from fast to slow; 0 bytes of a remote one mean that it evicts by itself."""
        sizes = (("memory", self.memory), ("disk", self.disk))
        local = tuple(TierInfo(name, size, is_durable=name == "disk") for name, size in sizes if size)
        return (*local, TierInfo("redis", 0, is_remote=True)) if self.redis else local

    def changed(self, text: str) -> Scenario:
        """Return the scenario after changes such as "memory=2x" or "eviction=lru,disk_speed=1GB"; the text becomes its label.

        Sizes and `NAME_speed` (bytes per second of a tier) take a size or a factor such as 2x; `codec_factor` multiplies the bytes per
        token. Unknown names and values raise InvalidInputError.
        """
        scenario = self
        for item in text.split(","):
            name, _, value = item.partition("=")
            if name not in _CHANGES:
                raise InvalidInputError(f"{name!r} can't be changed; known are {', '.join(_CHANGES)}")
            try:
                scenario = _CHANGES[name](scenario, value)
            except (ValueError, OverflowError) as error:
                raise InvalidInputError(f"{item!r}: {value!r} is not a value of {name}") from error
        return replace(scenario, label=text)


def _number(text: str, now: float) -> float:
    """Read "2x" as a factor of what is now, anything else as a size; raises ValueError and ConfigError."""
    return now * float(text[:-1]) if text.endswith("x") else parse_nbytes(text)


def _capacity(name: str) -> Callable[[Scenario, str], Scenario]:
    def change(scenario: Scenario, value: str) -> Scenario:
        sizes: dict[str, int] = {name: int(_number(value, getattr(scenario, name)))}
        return replace(scenario, **sizes)  # type: ignore[arg-type]

    return change


def _speed(name: str) -> Callable[[Scenario, str], Scenario]:
    def change(scenario: Scenario, value: str) -> Scenario:
        cost = scenario.costs.costs.get(tier_subject(name))
        if cost is None:
            raise InvalidInputError(f"the costs know no tier {name}")
        fixed_s, byte_s = cost.coefficients
        speed = _number(value, 1 / byte_s if byte_s else 0.0)
        if not speed > 0:
            raise ValueError(f"a speed is above 0, got {value}")
        costs = {**scenario.costs.costs, tier_subject(name): replace(cost, coefficients=(fixed_s, 1 / speed))}
        return replace(scenario, costs=replace(scenario.costs, costs=costs))

    return change


def _codec_factor(scenario: Scenario, value: str) -> Scenario:
    return replace(scenario, bytes_per_token=scenario.bytes_per_token * float(value))


_CHANGES: Mapping[str, Callable[[Scenario, str], Scenario]] = {
    **{name: _capacity(name) for name in TIERS},
    **{f"{name}_speed": _speed(name) for name in TIERS},
    "eviction": lambda scenario, value: replace(scenario, eviction=value),
    "planner": lambda scenario, value: replace(scenario, planner=value),
    "codec_factor": _codec_factor,
    "patch_rows": lambda scenario, value: replace(scenario, patch_rows=int(value)),
}


def describe(scenario: Scenario) -> str:
    """Say what a scenario is made of."""
    sizes = [f"{name} {format_nbytes(getattr(scenario, name))}" for name in TIERS if getattr(scenario, name)]
    rest = [f"eviction {scenario.eviction}", f"planner {scenario.planner}", f"{scenario.bytes_per_token:.0f} B per token"]
    return ", ".join([*sizes, *rest])
