"""A Gemma 3 directory with image input is served by its text model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from kvworker.engine.engine import Segment
from kvworker.engine.engine_hf import load_engine
from tests.engine.tiny_models import COMMON, WINDOW, tiny_tokenizer

VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def test_the_text_model_of_a_directory_with_image_input_answers_as_the_whole_does(tmp_path: Path) -> None:
    """Released checkpoints of 4 B parameters and more are of this kind."""
    text = {**COMMON, "vocab_size": 300, "sliding_window": WINDOW, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16}
    special: dict[str, Any] = {"image_token_index": 290, "boi_token_index": 291, "eoi_token_index": 292}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole: Any = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, **special))
    whole.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    engine = load_engine(tmp_path, device="cpu")
    ids = list(range(3 * WINDOW))
    with torch.inference_mode():
        expected = whole.eval()(input_ids=torch.tensor([ids]), token_type_ids=torch.zeros(1, len(ids), dtype=torch.long)).logits[0, -1]
    assert {group.window for group in engine.identity.layout.groups} == {0, WINDOW}
    torch.testing.assert_close(engine.prefill([Segment(tuple(ids))], range(len(ids))).first_logits, expected, rtol=0, atol=1e-4)
