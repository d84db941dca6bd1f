"""Presets: what to store KV as, for how much may be lost; from the safest to the smallest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A codec for a purpose.

    Parameters
    ----------
    name : str
    plain : str
        The codec text, without calibrated tables.
    calibrated : str
        The codec text for a model whose tables were calibrated; "" where tables gain nothing.
    limit : float
        What a passage may lose to be stored so: of K and of V the norm of what is off over the norm of what should be, and the same of
        attention's output, mean over layers, where the model was calibrated.
    key_bits : float
        What a value of K takes at least, parameters left out.
    """

    name: str
    plain: str
    calibrated: str
    limit: float
    key_bits: float


LADDER = (
    Preset("lossless", "exponent_split+zstd:fields=exponent,level=1", "", 0.0, 16),
    Preset("near-lossless", "int8", "", 0.05, 8),
    Preset("balanced", "sinks:n=4+clipped:bits=4,group=32", "sinks:n=4+lorc:most=90,least=70+clipped:bits=4,group=16", 0.2, 4),
    Preset("small", "sinks:n=4+clipped:bits=3,group=32", "sinks:n=4+pca:ratio=8", 0.3, 2),
    Preset("tiny", "sinks:n=4+clipped:bits=2,group=32", "sinks:n=4+cross+pca:over=model,ratio=16+deflate:fields=codes", 0.4, 1),
)
"""Each one but the first falls back to the one before it where a passage would lose more than its limit."""

FINE_KEY_BITS = 4
"""What keys take at least in models whose queries crowd on few KV heads, or whose keys have a bias."""


def calibrated_text(text: str) -> str:
    """Return the codec text of a preset for a model whose tables are calibrated; any other text as it is."""
    return next((preset.calibrated or preset.plain for preset in LADDER if preset.name == text), text)
