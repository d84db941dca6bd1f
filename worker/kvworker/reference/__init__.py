"""The reference model: notes whose answers are known, the tokenizer for them, and trained weights in `MODEL_FOLDER`."""

from __future__ import annotations

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
