"""What is compared: every known recompute policy at the shares of rows asked for, and how passages were read before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from kvstore.core.discovery import find, known_names
from kvworker.answer.load import DeviceSource
from kvworker.answer.policy import RecomputePolicy, find_policy
from kvworker.engine.engine import Segment

ReadAs = Literal["alone", "document", "prefix"]
LATE_CHUNKING = "late_chunking"
_ROWS, _LAYERS = 100, 100
POLICIES = "kvworker.methods.recompute"


@dataclass(frozen=True)
class Variant:
    """A way to answer: how the passages were read, what is repaired, and the share of rows that this was meant to repair.

    `policy` None computes the whole prompt and uses nothing that was read before.
    """

    name: str
    ratio: float
    reading: ReadAs = "alone"
    policy: RecomputePolicy | None = None


FULL = Variant("full", 1.0)


def policies_at(ratio: float, passage_tokens: int) -> Iterator[RecomputePolicy]:
    """Yield every policy that can be told how many rows to repair, told so; `passage_tokens` is a passage's usual length."""
    for policy in _general_policies():
        types = {field.name for field in fields(policy)}
        if "ratio" in types:
            yield find_policy(policy.name, ratio=ratio)
        elif "k" in types and round(ratio * passage_tokens) >= 1:
            yield find_policy(policy.name, k=round(ratio * passage_tokens))


def fixed_policies() -> list[RecomputePolicy]:
    """Return every policy whose rows cannot be told in advance, with its own defaults."""
    return [policy for policy in _general_policies() if not {"ratio", "k"} & {field.name for field in fields(policy)}]


def every_policy() -> list[RecomputePolicy]:
    """Return every policy for any model with its own defaults, but for those that compute everything."""
    return [policy for policy in _general_policies() if share_of(policy) < 1]


def _general_policies() -> list[RecomputePolicy]:
    """Return every policy that works for any model, with its own defaults."""
    found: list[type[RecomputePolicy]] = [find(POLICIES, name) for name in known_names(POLICIES)]
    return [find_policy(policy.name) for policy in found if policy.is_general]


def is_for(policy: RecomputePolicy, reading: ReadAs) -> bool:
    """Tell whether a policy has anything to go by where passages were read so: some want them read alone."""
    return reading == "alone" or (policy.is_in_turn and not policy.reads_need)


def share_of(policy: RecomputePolicy) -> float:
    """Return the share of a passage's rows that a policy repairs where anything needs repair."""
    before, passage = (Segment((0,) * n, DeviceSource(()), is_exact) for n, is_exact in ((1, True), (_ROWS, False)))
    return policy.work([before, passage, Segment((0,))], _LAYERS)[1] / _ROWS


def alone_at(ratios: Sequence[float], passage_tokens: int) -> list[Variant]:
    """Return every policy over passages that were read alone."""
    fixed = [Variant(p.name, share_of(p), "alone", p) for p in fixed_policies()]
    return fixed + [Variant(p.name, ratio, "alone", p) for ratio in ratios for p in policies_at(ratio, passage_tokens)]


def late_at(ratios: Sequence[float], passage_tokens: int) -> list[Variant]:
    """Return late chunking by itself and repaired by every policy that can be told how many rows to repair."""
    by_itself = Variant(LATE_CHUNKING, 0.0, "document", find_policy("none"))
    repaired = [(ratio, p) for ratio in ratios for p in policies_at(ratio, passage_tokens) if is_for(p, "document")]
    return [by_itself, *(Variant(f"{LATE_CHUNKING}+{p.name}", ratio, "document", p) for ratio, p in repaired)]
