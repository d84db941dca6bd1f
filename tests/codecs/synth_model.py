"""The model behind the synthetic layer as calibration sees it, and what errors of its K and V do to its attention."""

from __future__ import annotations

from functools import cache

import torch

from kvstore.core.identity import KVLayout, LayerGroup, ModelIdentity, RopeSpec
from kvworker.calibrate.collect import Collector
from kvworker.calibrate.statistics import Statistics
from kvworker.chunk import KVChunk
from kvworker.engine.engine import Study
from kvworker.engine.rope import placed
from tests.codecs.synth import DIM, HEADS, Synthetic, layer, relative_error

ROPE = RopeSpec("default", 10_000.0, DIM)
MODEL = ModelIdentity("m", "0" * 64, KVLayout((LayerGroup((0,), HEADS, DIM, DIM, None),)), "float32", "1" * 64)


def statistics_of(kv: KVChunk, q: torch.Tensor, model: ModelIdentity = MODEL) -> Statistics:
    """Return the statistics of a model with one layer over one text, whose tokens are all attended to alike; q (H, Q, D) before scaling."""
    collector = Collector(model)
    ones = {0: torch.ones(kv.k.shape[2])}
    collector.add(Study((kv,), {0: q.square().mean(1) / q.shape[-1]}, ones, ones))
    return collector.statistics()


@cache
def seen() -> Statistics:
    """Return the statistics of another text than the one that is coded."""
    text = layer(100)
    return statistics_of(KVChunk(text.k, text.v), text.q)


def attention_error(text: Synthetic, k: torch.Tensor, v: torch.Tensor) -> float:
    """Return how far off the outputs of the text's queries, which stand behind it, are with k and v (1, H, T, D) in place of its own."""
    q = placed(text.q, ROPE, text.k.shape[2])

    def outputs(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return (q @ placed(keys[0], ROPE, 0).mT / DIM**0.5).softmax(-1) @ values[0]

    return relative_error(outputs(k, v), outputs(text.k, text.v))
