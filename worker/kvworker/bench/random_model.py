"""A Llama of about 100 million random parameters, for timing: its answers mean nothing, its arithmetic costs what a real one's does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS, WIDTH, FFN, HEADS, KV_HEADS = 16, 768, 2048, 12, 4
CONTEXT = 4096
_SEED = 7


def write_random_model(tokenizer_from: Path, directory: Path) -> Path:
    """Write config, weights and a copy of another model's tokenizer to `directory`, unless they are there; return it."""
    if (directory / "model.safetensors").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    settings = json.loads((tokenizer_from / "config.json").read_text(encoding="utf-8"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / file, directory / file)
    vocabulary = int(settings["vocab_size"])
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        **{name: settings.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(_weights(vocabulary), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _weights(vocabulary: int) -> dict[str, torch.Tensor]:
    """Return random weights by their names in a Llama checkpoint."""
    draw = torch.Generator().manual_seed(_SEED)
    kv_width = WIDTH // HEADS * KV_HEADS
    shapes = {"self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (kv_width, WIDTH), "self_attn.v_proj": (kv_width, WIDTH)}
    shapes |= {
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (FFN, WIDTH),
        "mlp.up_proj": (FFN, WIDTH),
        "mlp.down_proj": (WIDTH, FFN),
    }
    weights = {"model.embed_tokens.weight": torch.randn(vocabulary, WIDTH, generator=draw), "model.norm.weight": torch.ones(WIDTH)}
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = torch.randn(shape, generator=draw) * 0.02
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = torch.ones(WIDTH)
    return weights
