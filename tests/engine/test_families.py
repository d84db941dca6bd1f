"""What a configuration means for the KV layout, and what is refused instead of guessed."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, StableLmConfig

from kvstore.core.errors import UnsupportedError
from kvworker.engine.families import context_tokens, family_of, layout_of


def shape(config: Any) -> list[tuple[tuple[int, ...], int]]:
    """Return layers and window of every group."""
    return [(group.layers, group.window) for group in layout_of(config).groups]


@pytest.mark.parametrize("sizes", [[1], [1, 1], [2, 1], [2, 2], [3, 2], [8, 8], [8, 8, 4]])
def test_a_run_of_alike_layers_is_cut_into_at_least_two_groups_of_at_most_eight(sizes: list[int]) -> None:
    """One group would have to arrive whole before the first layer could run."""
    assert [len(layers) for layers, _ in shape(LlamaConfig(num_hidden_layers=sum(sizes)))] == sizes


def test_a_group_records_heads_and_dimensions() -> None:
    """They size every stored chunk."""
    group = layout_of(Qwen3Config(num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2, head_dim=64)).groups[0]
    assert (group.kv_heads, group.k_dim, group.v_dim, group.kind) == (2, 64, 64, "full")


def test_the_head_dimension_follows_from_the_width_where_it_is_not_given() -> None:
    """Old Llama configurations leave it out."""
    assert layout_of(LlamaConfig(hidden_size=96, num_attention_heads=4, num_key_value_heads=2)).groups[0].k_dim == 24


def test_every_layer_of_a_windowed_mistral_has_the_window() -> None:
    """This family has no layer types."""
    assert shape(MistralConfig(num_hidden_layers=2, sliding_window=16)) == [((0,), 16), ((1,), 16)]


def test_a_mistral_without_window_sees_all() -> None:
    """Later releases set it to null."""
    assert {window for _, window in shape(MistralConfig(num_hidden_layers=2, sliding_window=None))} == {0}


def test_a_qwen_uses_its_window_only_where_it_is_switched_on() -> None:
    """The configuration names a window even when it is off."""
    off = Qwen2Config(num_hidden_layers=4, sliding_window=16)
    on = Qwen2Config(num_hidden_layers=4, sliding_window=16, use_sliding_window=True, max_window_layers=2)
    assert [window for _, window in shape(off)] == [0, 0]
    assert shape(on) == [((0, 1), 0), ((2, 3), 16)]


def test_gemma_has_one_rotary_embedding_per_layer_type() -> None:
    """Local layers turn with base 10,000, global ones with 1,000,000 and a linear factor."""
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
    }
    config = Gemma3TextConfig(num_hidden_layers=6, sliding_window=16, rope_parameters=rope)
    groups = layout_of(config).groups
    assert [(g.layers, g.window) for g in groups] == [((0, 1, 2), 16), ((3, 4), 16), ((5,), 0)]
    assert [(g.rope.kind, g.rope.theta, dict(g.rope.params)) for g in groups[1:] if g.rope] == [
        ("default", 10000.0, {}),
        ("linear", 1000000.0, {"factor": 8.0}),
    ]


def test_an_unknown_model_type_is_refused_with_the_known_ones() -> None:
    """Another family may norm, scale or share its keys in ways that we do not undo."""
    with pytest.raises(UnsupportedError, match="'gpt2' is not supported; supported: llama, mistral, qwen2, qwen3, gemma3_text, stablelm"):
        family_of("gpt2")


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "short_factor": [1.0] * 64, "long_factor": [2.0] * 64}


def stablelm(share: float, **settings: Any) -> StableLmConfig:
    """Return a configuration of a family that rotates the first share of a head of 80."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": share}
    return StableLmConfig(num_hidden_layers=2, rope_parameters=rope, **settings)


def test_a_family_that_rotates_a_part_of_each_head_says_how_much() -> None:
    """A quarter of 80."""
    group = layout_of(stablelm(0.25)).groups[0]
    assert group.rope is not None
    assert (group.k_dim, group.rope.rotary_dim) == (80, 20)


@pytest.mark.parametrize(("rope", "n_tokens"), [(DYNAMIC, 8192), ({"rope_type": "default", "rope_theta": 1e4}, 2048)])
def test_dynamic_scaling_stretches_the_context_by_its_factor(rope: dict[str, Any], n_tokens: int) -> None:
    """Its configurations give the trained context as the most positions."""
    assert context_tokens(LlamaConfig(rope_parameters=rope, max_position_embeddings=2048)) == n_tokens


def quantized() -> LlamaConfig:
    """Return a configuration as quantized checkpoints have it."""
    config = LlamaConfig()
    config.quantization_config = {"quant_method": "gptq"}
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LlamaConfig(rope_parameters=LONGROPE), "rotary embedding 'longrope' is not supported"),
        (LlamaConfig(rope_parameters={**DYNAMIC, "factor": 0.5}), "a factor of at least 1 and more than 2 elements, not 0.5 and 128"),
        (LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}), "partial rotary.*llama"),
        (stablelm(0.0125), "0.0125 of 80 elements are 1, which do not make pairs"),
        (stablelm(0.25, qk_layernorm=True), "qk_layernorm"),
        (Gemma3TextConfig(use_bidirectional_attention=True), "bidirectional"),
        (quantized(), "quantized"),
    ],
)
def test_a_setting_that_changes_keys_in_unknown_ways_is_refused(config: Any, message: str) -> None:
    """The error names what is not supported."""
    with pytest.raises(UnsupportedError, match=message):
        layout_of(config)


def test_an_unknown_layer_type_is_refused() -> None:
    """Chunked attention sees other keys than a window does."""
    config = Qwen3Config(num_hidden_layers=2)
    config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(UnsupportedError, match=r"\['chunked_attention'\] are not supported; supported: full_attention, sliding_attention"):
        layout_of(config)
