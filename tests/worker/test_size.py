"""What `larder size` predicts, against published figures and against what is really stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kvclient.cli.main import main
from kvstore.core.blob import parse_header
from kvstore.core.errors import InvalidInputError
from kvstore.core.identity import KVLayout, LayerGroup, ModelIdentity
from kvstore.core.key import Kind
from kvstore.store.memory import MemoryTier
from kvstore.store.record import RecordMeta
from kvstore.store.tiered import TieredStore
from kvworker import size as sizing
from kvworker.chunk import KVChunk
from kvworker.codec.specs import PRESETS, find_codec
from kvworker.size import Passages, record_nbytes, size

LAYOUT = KVLayout((LayerGroup((0, 1), 2, 64, 64, None), LayerGroup((2,), 1, 64, 64, None)))
LLAMA_3_8B = {
    "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32,
    "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
}  # fmt: skip


def test_a_known_model_takes_its_known_bytes_per_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Llama 3 8B: 32 layers x 8 heads x 128 values x 2 sides x 2 B = 128 KiB a token, and an envelope; no weights are there to load."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    assert main(["size", "--model", str(tmp_path), "--codec", "raw", "--passages", "1000", "--tokens", "64", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["tiers"]["device"] == 1000 * 64 * 128 * 1024
    assert 128 * 1024 <= row["nbytes_per_token"] < 128 * 1024 * 1.002


@pytest.mark.parametrize("codec", ["raw", "int8", "kivi4"])
def test_a_short_passage_is_sized_as_a_tier_counts_it(codec: str) -> None:
    """Whoever sets a capacity by the calculator finds that many chunks in the tier."""
    predicted = record_nbytes(LAYOUT, "float32", 96, find_codec(codec))
    assert predicted == _stored_nbytes(codec, 96)


def _stored_nbytes(codec: str, n_tokens: int) -> int:
    """Put one passage into a store and return what its memory tier then holds."""
    rng = torch.Generator().manual_seed(3)
    shapes = [(len(group.layers), group.kv_heads, n_tokens, group.k_dim) for group in LAYOUT.groups]
    passage = tuple(KVChunk(torch.randn(*shape, generator=rng), torch.randn(*shape, generator=rng)) for shape in shapes)
    identity = ModelIdentity("m", "0" * 64, LAYOUT, "float32", "1" * 64)
    blob = find_codec(codec).encode(passage, identity, Kind.ALONE, b"\7" * 32)
    store = TieredStore([MemoryTier(4 << 20)])
    store.put(bytes(32), RecordMeta.of(parse_header(blob).manifest, "a.txt"), blob)
    used = store.tier_stats()[0].used_bytes
    store.close()
    return used


@pytest.mark.parametrize("codec", sorted(name for name in PRESETS if not find_codec(name).traits.needs_artifact))
def test_a_long_passage_is_sized_within_two_percent(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a codec keeps once per passage, such as its first tokens, must not be multiplied with the length."""
    guessed = record_nbytes(LAYOUT, "bfloat16", 1024, find_codec(codec))
    monkeypatch.setattr(sizing, "SAMPLE_TOKENS", 1024)
    exact = record_nbytes(LAYOUT, "bfloat16", 1024, find_codec(codec))
    assert guessed == pytest.approx(exact, rel=0.02)


def test_a_codec_without_its_tables_is_refused() -> None:
    """Its size is part of what a calibration finds."""
    with pytest.raises(InvalidInputError, match="larder calibrate"):
        size(LAYOUT, "bfloat16", Passages(1, 64), "skvq")


@pytest.mark.parametrize(("codec", "is_estimate"), [("lossless", True), ("balanced", True), ("raw", False), ("kivi4", False)])
def test_a_size_that_depends_on_the_values_is_called_an_estimate(codec: str, is_estimate: bool) -> None:
    """Nobody has seen them yet: bytes are packed by what they are, and a preset falls back where it would lose too much."""
    assert size(LAYOUT, "bfloat16", Passages(1, 64), codec)["is_estimate"] is is_estimate


@pytest.mark.parametrize(("n_passages", "n_tokens"), [(0, 256), (1, 0), (-1, 1)])
def test_nothing_to_size_is_refused(n_passages: int, n_tokens: int) -> None:
    """A negative capacity would look like a free one."""
    with pytest.raises(InvalidInputError, match="at least 1 passage"):
        Passages(n_passages, n_tokens)
