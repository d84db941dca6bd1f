"""Which codecs the codec benchmark measures: presets, every method at the sizes that its paper names, and methods that nobody listed."""

from __future__ import annotations

from kvstore.core.discovery import known_names
from kvworker.codec.registry import QUANTIZERS, TRANSFORMS
from kvworker.codec.specs import PRESETS

QUICK = (
    "lossless",
    "int8",
    "kivi:bits=4,group=32",
    "kivi:bits=2,group=32",
    "sinks:n=5+skvq:k_levels=4,v_levels=4",
)
LISTED = (
    *QUICK,
    "raw+zstd",
    "kivi:bits=4,group=64",
    "sinks:n=5+skvq:k_levels=16,v_levels=16",
    "sinks:n=5+skvq:k_levels=8,v_levels=8",
    "sinks:n=5+skvq:k_levels=4,v_levels=3",
)


def catalogue() -> tuple[str, ...]:
    """Return codec texts, each codec once: presets, what is listed, and the defaults of methods that no text names."""
    named = {stage.partition(":")[0] for text in (*PRESETS.values(), *LISTED) for stage in text.split("+")}
    quantizers = (name for name in known_names(QUANTIZERS) if name not in named)
    transforms = (f"{name}+int8" for name in known_names(TRANSFORMS) if name not in named)
    known = set(PRESETS.values())
    return (*PRESETS, *(text for text in LISTED if text not in PRESETS and text not in known), *quantizers, *transforms)
