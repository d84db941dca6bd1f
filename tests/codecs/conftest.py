"""A small passage and its blob."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kvstore.core.identity import KVLayout, LayerGroup, ModelIdentity
from kvstore.core.key import Kind
from kvworker.chunk import KVChunk, PassageKV
from kvworker.codec.specs import find_codec

Encode = Callable[[str], bytearray]


@pytest.fixture
def identity() -> ModelIdentity:
    """Two groups of layers, in bfloat16."""
    groups = (LayerGroup((0, 1), 2, 16, 24, None), LayerGroup((2,), 1, 8, 8, None))
    return ModelIdentity("m", "0" * 64, KVLayout(groups), "bfloat16", "1" * 64)


@pytest.fixture
def passage() -> PassageKV:
    """Nine tokens of that model."""
    rng = torch.Generator().manual_seed(0)
    shapes = (((2, 2, 9, 16), (2, 2, 9, 24)), ((1, 1, 9, 8), (1, 1, 9, 8)))
    return tuple(KVChunk(*(torch.randn(*shape, generator=rng).bfloat16() for shape in pair)) for pair in shapes)


@pytest.fixture
def encode(identity: ModelIdentity, passage: PassageKV) -> Encode:
    """Encode the passage with a codec by name."""
    return lambda codec: find_codec(codec).encode(passage, identity, Kind.ALONE, b"\7" * 32)
