"""The model families that are served: where a key can be caught before RoPE, and what KV layout a configuration means.

A configuration is read by attribute and never trusted to mean what it meant in another family: whatever is not listed is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kvstore.core.errors import UnsupportedError
from kvstore.core.identity import KVLayout, LayerGroup, RopeSpec
from kvworker.engine.rope import KINDS

_MOST_LAYERS_PER_GROUP = 8


@dataclass(frozen=True)
class Family:
    """How one family computes its keys.

    Parameters
    ----------
    key_module : str
        Module of the attention whose output is K before RoPE.
    key_axes : str
        Axes of that output: "tokens,values" (heads not yet split), "tokens,heads" or "heads,tokens".
    windows : str
        Which layers have a sliding window: "none", "all" (when the configuration has one) or "layer_types".
    turns_part : bool
        Whether the family heeds `partial_rotary_factor`; the others ignore it or fail over it.
    """

    key_module: Literal["k_proj", "k_norm"]
    key_axes: Literal["tokens,values", "tokens,heads", "heads,tokens"]
    windows: Literal["none", "all", "layer_types"]
    turns_part: bool = False

    def project(self, attention: Any, hidden: torch.Tensor, kv_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K before RoPE and V, (H, S, D) each, that an attention module makes of its normalised input (1, S, hidden)."""
        k, v = (project(hidden)[0].view(hidden.shape[1], kv_heads, -1).transpose(0, 1) for project in (attention.k_proj, attention.v_proj))
        return (attention.k_norm(k) if self.key_module == "k_norm" else k), v

    @property
    def query_module(self) -> str:
        """Module of the attention whose output is Q before RoPE, with the axes that keys have."""
        return self.key_module.replace("k_", "q_")

    def by_head(self, output: torch.Tensor, dim: int) -> torch.Tensor:
        """Return the output of the key or the query module for a batch of one as (heads, T, D)."""
        if self.key_axes == "heads,tokens":
            return output[0]
        return output[0].view(output.shape[1], -1, dim).transpose(0, 1)


FAMILIES: Mapping[str, Family] = {
    "llama": Family("k_proj", "tokens,values", "none"),
    "mistral": Family("k_proj", "tokens,values", "all"),
    "qwen2": Family("k_proj", "tokens,values", "layer_types"),
    "qwen3": Family("k_norm", "tokens,heads", "layer_types"),
    "gemma3_text": Family("k_norm", "heads,tokens", "layer_types"),
    "stablelm": Family("k_proj", "tokens,values", "none", turns_part=True),
}
_KNOWN_LAYER_TYPES = ("full_attention", "sliding_attention")


def family_of(model_type: str) -> Family:
    """Return the family of a configuration's model_type; any other raises UnsupportedError with those that are known."""
    if model_type not in FAMILIES:
        raise UnsupportedError(f"model type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def layout_of(config: object) -> KVLayout:
    """Return the KV layout of a text model's configuration: runs of alike layers, cut so that loading overlaps with computing."""
    _refuse_foreign_attention(config)
    layers = _layer_geometry(config)
    if not layers:
        raise UnsupportedError("a model without layers has no KV to store")
    most = min(_MOST_LAYERS_PER_GROUP, math.ceil(len(layers) / 2))
    groups: list[LayerGroup] = []
    for index, geometry in enumerate(layers):
        last = groups[-1] if groups else None
        if last is not None and len(last.layers) < most and _geometry(last) == geometry:
            groups.pop()
            groups.append(_group((*last.layers, index), geometry))
        else:
            groups.append(_group((index,), geometry))
    return KVLayout(tuple(groups))


def context_tokens(config: Any) -> int:
    """Return how many tokens a model reads; dynamic NTK scaling stretches the trained context by its factor."""
    trained: int = config.max_position_embeddings
    ropes = [group.rope for group in layout_of(config).groups]
    factors = [dict(rope.params)["factor"] for rope in ropes if rope and rope.kind == "dynamic"]
    return int(trained * min(factors, default=1.0))


_Geometry = tuple[int, int, RopeSpec | None, int]  # kv heads, head dim, rope, window


def _geometry(group: LayerGroup) -> _Geometry:
    return group.kv_heads, group.k_dim, group.rope, group.window


def _group(layers: tuple[int, ...], geometry: _Geometry) -> LayerGroup:
    kv_heads, head_dim, rope, window = geometry
    return LayerGroup(layers, kv_heads, head_dim, head_dim, rope, "window" if window else "full", window)


def _layer_geometry(config: Any) -> list[_Geometry]:
    """Return heads, head dimension, rope and window of every layer, in order."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    types = _layer_types(config)
    rope = {kind: _rope_spec(config, _rope_parameters(config, kind), head_dim) for kind in set(types)}
    window = {"full_attention": 0, "sliding_attention": getattr(config, "sliding_window", None) or 0}
    return [(config.num_key_value_heads, head_dim, rope[kind], window[kind]) for kind in types]


def _layer_types(config: Any) -> list[str]:
    """Return "full_attention" or "sliding_attention" for every layer."""
    windows = family_of(config.model_type).windows
    if windows == "layer_types":
        unknown = set(config.layer_types) - set(_KNOWN_LAYER_TYPES)
        if unknown:
            raise UnsupportedError(f"layer types {sorted(unknown)} are not supported; supported: {', '.join(_KNOWN_LAYER_TYPES)}")
        return list(config.layer_types)
    has_window = windows == "all" and config.sliding_window is not None
    return ["sliding_attention" if has_window else "full_attention"] * config.num_hidden_layers


def _rope_parameters(config: Any, layer_type: str) -> Mapping[str, Any]:
    """Return the rotary parameters of one layer type; a configuration has one set for all or one per type."""
    parameters: Mapping[str, Any] = config.rope_parameters
    nested = parameters.get(layer_type)
    return nested if isinstance(nested, Mapping) else parameters


def _rope_spec(config: Any, parameters: Mapping[str, Any], head_dim: int) -> RopeSpec:
    """Return the spec of one set of rotary parameters; UnsupportedError for kinds and partial rotation that we cannot redo."""
    max_positions = config.max_position_embeddings
    kind = parameters.get("rope_type", "default")
    if kind not in KINDS:
        raise UnsupportedError(f"rotary embedding {kind!r} is not supported; supported: {', '.join(KINDS)}")
    rotary_dim = _rotary_dim(config.model_type, parameters.get("partial_rotary_factor"), head_dim)
    values: dict[str, float] = {}
    if kind in ("linear", "dynamic", "llama3"):
        values["factor"] = float(parameters["factor"])
    if kind == "dynamic":
        values["original_max_position_embeddings"] = float(max_positions)
        _check_dynamic(values, rotary_dim)
    if kind == "llama3":
        values |= {name: float(parameters[name]) for name in ("low_freq_factor", "high_freq_factor")}
        values["original_max_position_embeddings"] = float(parameters.get("original_max_position_embeddings") or max_positions)
    if kind == "yarn":
        values = _yarn_values(parameters, max_positions)
    return RopeSpec(kind, float(parameters["rope_theta"]), rotary_dim, tuple(sorted(values.items())))


def _rotary_dim(model_type: str, share: float | None, head_dim: int) -> int:
    """Return how many elements of a head are rotated."""
    if share in (None, 1.0):
        return head_dim
    if not family_of(model_type).turns_part:
        raise UnsupportedError(f"partial rotary embedding ({share}) is not supported in {model_type}, which turns whole heads")
    rotary_dim = int(head_dim * share)
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise UnsupportedError(
            f"partial rotary embedding: {share} of {head_dim} elements are {rotary_dim}, which do not make pairs within a head"
        )
    return rotary_dim


def _check_dynamic(values: Mapping[str, float], rotary_dim: int) -> None:
    """Raise UnsupportedError for dynamic NTK scaling that would divide by zero or shrink the context."""
    if values["factor"] < 1 or rotary_dim <= 2:
        raise UnsupportedError(
            f"dynamic rotary embedding needs a factor of at least 1 and more than 2 elements, not {values['factor']} and {rotary_dim}"
        )


def _yarn_values(parameters: Mapping[str, Any], max_positions: int) -> dict[str, float]:
    """Return YaRN's parameters with every default resolved, the attention factor among them."""
    original = float(parameters.get("original_max_position_embeddings") or max_positions)
    factor = float(parameters.get("factor") or max_positions / original)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0  # YaRN, section 3.3

    attention = parameters.get("attention_factor")
    if attention is None:
        both = parameters.get("mscale"), parameters.get("mscale_all_dim")
        attention = magnitude(both[0]) / magnitude(both[1]) if both[0] and both[1] else magnitude(1.0)
    return {
        "attention_factor": float(attention),
        "beta_fast": float(parameters.get("beta_fast") or 32),
        "beta_slow": float(parameters.get("beta_slow") or 1),
        "factor": factor,
        "original_max_position_embeddings": original,
        "truncate": float(parameters.get("truncate", True)),
    }


def _refuse_foreign_attention(config: object) -> None:
    """Raise UnsupportedError for settings under which a causal K and V per head is not the whole truth."""
    if getattr(config, "use_bidirectional_attention", False):
        raise UnsupportedError("bidirectional attention is not supported: keys and values of a passage would depend on later tokens")
    if getattr(config, "qk_layernorm", False):
        raise UnsupportedError("qk_layernorm is not supported: its keys are normed per head behind k_proj; set qk_layernorm to false")
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedError("quantized checkpoints are not supported; use the directory with unquantized safetensors")
