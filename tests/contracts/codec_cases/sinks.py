"""Sinks: exact before an exact codec, and raw bytes beside those of the rest; the presets that have them and no tables."""

from __future__ import annotations

from dataclasses import replace

from kvworker.chunk import ChunkSpec
from tests.contracts.codec_cases.lossless import raw
from tests.contracts.codecs import Case


def sizes(spec: ChunkSpec) -> list[int]:
    """Return the bytes of four tokens, then of the others."""
    first, rest = (replace(spec, n_tokens=n) for n in (min(4, spec.n_tokens), max(spec.n_tokens - 4, 0)))
    return raw(first) + (raw(rest) if rest.n_tokens else [])


CASES = (
    Case("sinks+raw", sizes),
    Case("sinks+int8"),
    *(Case(preset) for preset in ("balanced", "small", "tiny")),
)
