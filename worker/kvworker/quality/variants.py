"""What is compared: every known recompute policy at the shares of rows asked for, and how passages were read before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from kvstore.core.discovery import known_names
from kvworker.answer.policy import RecomputePolicy, find_policy

ReadAs = Literal["alone", "document", "prefix"]
LATE_CHUNKING = "late_chunking"
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
    for name in known_names(POLICIES):
        types = {field.name for field in fields(type(find_policy(name)))}
        if "ratio" in types:
            yield find_policy(name, ratio=ratio)
        elif "k" in types and round(ratio * passage_tokens) >= 1:
            yield find_policy(name, k=round(ratio * passage_tokens))


def fixed_policies() -> list[RecomputePolicy]:
    """Return every policy whose rows cannot be told in advance, with its own defaults."""
    found = [find_policy(name) for name in known_names(POLICIES)]
    return [policy for policy in found if not {"ratio", "k"} & {field.name for field in fields(policy)}]


def variants_at(ratios: Sequence[float], passage_tokens: int) -> list[Variant]:
    """Return full prefill, every policy over passages read alone, and late chunking by itself and with every policy at one ratio.

    Policies without a ratio of their own stand at 1 if they compute everything and at 0 else.
    """
    alone = [Variant(p.name, 1.0 if p.name == "all" else 0.0, "alone", p) for p in fixed_policies()]
    alone += [Variant(p.name, ratio, "alone", p) for ratio in ratios for p in policies_at(ratio, passage_tokens)]
    late = [Variant(LATE_CHUNKING, 0.0, "document", find_policy("none"))]
    middle = sorted(ratios)[len(ratios) // 2] if ratios else 0.0
    late += [Variant(f"{LATE_CHUNKING}+{p.name}", middle, "document", p) for p in policies_at(middle, passage_tokens) if ratios]
    return [FULL, *alone, *late]
