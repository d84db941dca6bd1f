"""The rotary table follows the library's formulas at small positions and keeps its precision at large ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from kvstore.core.errors import UnsupportedError
from kvstore.core.identity import RopeSpec
from kvworker.engine.families import layout_of
from kvworker.engine.rope import RotaryTable, frequencies, rotate

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 8.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn-attention": {**YARN, "attention_factor": 0.5},
    "yarn-mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn-one-mscale": {**YARN, "mscale": 0.7},
    "yarn-untruncated": {**YARN, "truncate": False, "beta_fast": 24, "beta_slow": 2},
    "yarn-steep": {**YARN, "beta_fast": 1, "beta_slow": 1},
}


def config_with(parameters: dict[str, Any]) -> LlamaConfig:
    """Return a configuration of Llama's usual head dimension."""
    return LlamaConfig(
        hidden_size=128,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=16384,
        rope_parameters={"rope_theta": 500000.0, **parameters},
    )


def spec_of(config: LlamaConfig) -> RopeSpec:
    """Return the rotary spec that the layout records."""
    spec = layout_of(config).groups[0].rope
    assert spec is not None
    return spec


@pytest.mark.parametrize("name", PARAMETERS)
def test_small_positions_turn_as_in_the_library(name: str) -> None:
    """With the attention factor of yarn applied once. An angle of 8 rad in float32 is off by up to 8 * 2**-24 = 5e-7."""
    config = config_with(PARAMETERS[name])
    cos, sin = RotaryTable(spec_of(config), torch.float32, torch.device("cpu")).first(8)
    theirs = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(8)[None])
    for own, other in zip((cos, sin), theirs, strict=True):
        torch.testing.assert_close(torch.cat((own, own), -1), other[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PARAMETERS)
def test_frequencies_are_those_of_the_library(name: str) -> None:
    """In relative terms, so that the slow dimensions count too; the library computes them in float32."""
    config = config_with(PARAMETERS[name])
    own, factor = frequencies(spec_of(config))
    theirs = LlamaRotaryEmbedding(config)
    torch.testing.assert_close(own.float(), theirs.inv_freq, rtol=2e-6, atol=0)
    assert factor == pytest.approx(theirs.attention_scaling, rel=1e-12)


@pytest.mark.parametrize("n_tokens", [16384, 16385, 20000, 60000])
def test_frequencies_of_a_long_sequence_are_those_of_the_library(n_tokens: int) -> None:
    """Dynamic NTK scaling: one row behind the trained context of 16,384 is enough to turn all others in another way."""
    config = config_with(PARAMETERS["dynamic"])
    theirs = LlamaRotaryEmbedding(config)
    theirs(torch.zeros(1), torch.tensor([[n_tokens - 1]]))
    own, _ = frequencies(spec_of(config), n_tokens)
    torch.testing.assert_close(own.float(), theirs.inv_freq, rtol=1e-5, atol=0)  # its base is a float32 power of 64 / 63


def test_rotating_keeps_relative_positions_at_a_position_of_128k() -> None:
    """Products of keys 5 apart are the same at 0 and at 128k; angles in float32 would be off by 1e-2 there."""
    spec = RopeSpec("default", 500000.0, 128)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 128, generator=generator)
    cos, sin = RotaryTable(spec, torch.float32, torch.device("cpu")).first(131072 + 6)

    def product(at: int) -> float:
        turned = torch.empty(2, 1, 128)
        for i, (x, position) in enumerate(((q, at + 5), (k, at))):
            rotate(x[None], cos[position : position + 1], sin[position : position + 1], out=turned[i])
        return float(turned[0, 0] @ turned[1, 0])

    assert product(131072) == pytest.approx(product(0), abs=3e-5)  # 128 products below 10, each rounded to 2**-24


def test_rotation_pairs_each_element_with_the_one_half_a_head_away() -> None:
    """A quarter turn of the first pair moves (1, 0) to (0, 1)."""
    out = torch.empty(1, 4)
    rotate(torch.tensor([[1.0, 2.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), out=out)
    assert out.tolist() == [[0.0, 2.0, 1.0, 0.0]]


def test_a_grown_table_keeps_its_first_rows() -> None:
    """A prompt that is longer than all before it must not move the others' keys."""
    table = RotaryTable(RopeSpec("default", 10000.0, 16), torch.float32, torch.device("cpu"))
    before = table.first(10)[0].clone()
    assert table.first(5000)[0].shape == (5000, 8)
    assert torch.equal(table.first(10)[0], before)


def test_position_zero_is_not_turned() -> None:
    """cos 1, sin 0."""
    cos, sin = RotaryTable(RopeSpec("default", 10000.0, 16), torch.float32, torch.device("cpu")).first(1)
    assert cos.tolist() == [[1.0] * 8]
    assert sin.tolist() == [[0.0] * 8]


def test_elements_behind_the_rotary_dimension_are_copied() -> None:
    """A quarter turn of the only pair, (element 0, element 1); the two others carry no position."""
    out = torch.empty(1, 4)
    rotate(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]), out=out)
    assert out.tolist() == [[-2.0, 1.0, 3.0, 4.0]]


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    """A guess would be a silently wrong key."""
    with pytest.raises(UnsupportedError, match="'longrope' is not supported; supported: default, linear, dynamic, llama3, yarn"):
        frequencies(RopeSpec("longrope", 10000.0, 16))


def test_yarn_scales_cos_and_sin_by_its_attention_factor() -> None:
    """0.1 ln(4) + 1, section 3.3 of the paper."""
    assert frequencies(spec_of(config_with(YARN)))[1] == pytest.approx(0.1 * math.log(4) + 1)
