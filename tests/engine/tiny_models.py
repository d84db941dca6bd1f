"""Tiny random models of every family, saved as directories that `load_engine` reads; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

BOS, EOS = 256, 257
N_VOCAB = 258
WINDOW = 12
COMMON = {
    "vocab_size": N_VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": None,
    "initializer_range": 0.3,
}
_QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_PART = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}


@dataclass(frozen=True)
class TinyModel:
    """A family and what distinguishes this model in it."""

    config: Any
    model: Any
    settings: Mapping[str, Any] = field(default_factory=dict)


TINY_MODELS: Mapping[str, TinyModel] = {
    "llama": TinyModel(LlamaConfig, LlamaForCausalLM),
    "llama-llama3": TinyModel(LlamaConfig, LlamaForCausalLM, {"rope_parameters": _LLAMA3}),
    "llama-linear": TinyModel(LlamaConfig, LlamaForCausalLM, {"rope_parameters": _LINEAR}),
    "qwen2": TinyModel(Qwen2Config, Qwen2ForCausalLM),
    "qwen2-window": TinyModel(Qwen2Config, Qwen2ForCausalLM, _QWEN_WINDOW),
    "qwen2-yarn": TinyModel(Qwen2Config, Qwen2ForCausalLM, {"rope_parameters": _YARN}),
    "qwen3": TinyModel(Qwen3Config, Qwen3ForCausalLM),
    "qwen3-window": TinyModel(Qwen3Config, Qwen3ForCausalLM, _QWEN_WINDOW),
    "mistral": TinyModel(MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "mistral-window": TinyModel(MistralConfig, MistralForCausalLM, {"sliding_window": WINDOW}),
    "gemma3": TinyModel(Gemma3TextConfig, Gemma3ForCausalLM, {"sliding_window": 512}),
    "stablelm": TinyModel(StableLmConfig, StableLmForCausalLM, {"hidden_size": 64, "rope_parameters": _PART}),
    "gemma3-window": TinyModel(
        Gemma3TextConfig, Gemma3ForCausalLM, {"sliding_window": WINDOW, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16}
    ),
}


def save_tiny_model(name: str, directory: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a random model of TINY_MODELS and its tokenizer to `directory` and return it; the same seed gives the same weights."""
    tiny = TINY_MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tiny.model(tiny.config(**{**COMMON, **tiny.settings, **changes}))
        for module in model.modules():  # norms start as ones or zeros, which would hide that they are left out
            if "Norm" in type(module).__name__:
                torch.nn.init.normal_(module.weight, mean=float(module.weight.detach().mean()), std=0.2)
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token per byte, with BOS and EOS behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")  # type: ignore[no-untyped-call]
