"""Which codecs the codec benchmark measures: presets, every method at the sizes that matter, and what nobody listed with its defaults."""

from __future__ import annotations

from kvstore.core.discovery import known_names
from kvworker.codec.presets import LADDER
from kvworker.codec.registry import QUANTIZERS, TRANSFORMS
from kvworker.codec.specs import find_codec

PRESETS = tuple(preset.name for preset in LADDER)
UNCALIBRATED = {f"{preset.name}, not calibrated": preset.plain for preset in LADDER if preset.calibrated}
"""What presets are for a model that was not calibrated, by what their rows are called."""
QUICK = ("lossless", "near-lossless", "balanced", *(name for name in UNCALIBRATED if name.startswith("balanced")), "small", "tiny")
LISTED = (
    "exponent_split+top16",
    "exponent_split+rans:fields=exponent",
    "exponent_split+deflate:fields=exponent",
    "raw+planes",
    "raw+zstd",
    "raw+lz4",
    "fp8",
    "nvfp4",
    "mxfp4",
    "hadamard",
    "turboquant",
    "turboquant:k_bits=2,v_bits=2",
    "kivi:bits=4,group=32",
    "kivi:bits=4,group=64",
    "kivi:bits=4,group=128",
    "clipped:bits=4,group=32",
    "kivi:bits=3,group=32",
    "kivi:bits=3,group=64",
    "kivi:bits=2,group=32",
    "kivi:bits=2,group=64",
    "kivi:bits=2,group=128",
    "sinks:n=5+skvq:k_levels=16,v_levels=16",
    "sinks:n=5+skvq:k_levels=4,v_levels=4",
    "sinks:n=5+skvq:k_levels=4,v_levels=3",
    "sinks:n=4+cq:couple=2,bits=8",
    "sinks:n=4+cq:couple=4,bits=8",
    "sinks:n=4+cq:couple=8,bits=8",
    "sinks:n=4+kvquant:k_bits=4,v_bits=4",
    "sinks:n=4+kvquant:k_bits=3,v_bits=3",
    "sinks:n=4+kvquant:k_bits=2,v_bits=2",
    "cachegen+trim:fields=streams",
    "sinks:n=4+pca:ratio=3",
    "sinks:n=4+pca:ratio=4",
    "sinks:n=4+cross+pca:over=model,ratio=4",
    "sinks:n=4+cross+pca:over=model,ratio=8",
    "think+int8",
    "lorc+int8",
)


def catalogue() -> tuple[str, ...]:
    """Return what is measured, each codec once: names of presets, of what they are uncalibrated, and codec texts."""
    preset_texts = [text for preset in LADDER for text in (preset.plain, preset.calibrated) if text]
    listed = [text for text in LISTED if all(find_codec(text) != find_codec(known) for known in preset_texts)]
    named = {stage.partition(":")[0] for text in (*preset_texts, *listed, "raw") for stage in text.split("+")}
    quantizers = (name for name in known_names(QUANTIZERS) if name not in named)
    transforms = (f"{name}+int8" for name in known_names(TRANSFORMS) if name not in named)
    return (*PRESETS, *UNCALIBRATED, *listed, *quantizers, *transforms)
