"""Presets by name: what they are without tables, and with them."""

from __future__ import annotations

import pytest

from kvworker.codec.presets import LADDER, calibrated_text
from kvworker.codec.specs import PRESETS, find_codec


@pytest.mark.parametrize("preset", LADDER, ids=lambda preset: preset.name)
def test_a_preset_that_is_calibrated_is_another_codec(preset: object) -> None:
    """Its rows, keys and costs are told apart by that."""
    name = preset.name  # type: ignore[attr-defined]
    plain, calibrated = find_codec(name), find_codec(calibrated_text(name))
    assert calibrated.traits.needs_artifact or calibrated == plain


def test_what_is_no_preset_stays_as_it_is() -> None:
    assert calibrated_text("kivi:bits=2") == "kivi:bits=2"


def test_every_preset_has_its_name_among_the_codecs() -> None:
    assert {preset.name for preset in LADDER} <= set(PRESETS)
    assert all(find_codec(preset.name) == find_codec(preset.plain) for preset in LADDER)
