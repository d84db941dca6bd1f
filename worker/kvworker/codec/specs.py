"""Codecs by name: presets such as "int8", and specs such as "sinks+kivi:bits=4,group=32" or "exponent_split+zstd:level=3"."""

from __future__ import annotations

from kvstore.codecs import Stage
from kvstore.core.discovery import known_names
from kvstore.core.errors import InvalidInputError, UnsupportedError
from kvstore.core.stages import Param
from kvworker.codec.pipeline import Pipeline
from kvworker.codec.presets import LADDER
from kvworker.codec.registry import BYTE_STAGES, QUANTIZERS, TRANSFORMS, find_stage_class

PRESETS = {
    "raw": "raw",
    **{preset.name: preset.plain for preset in LADDER},
    "kivi4": "kivi:bits=4,group=32",
    "kivi2": "kivi:bits=2,group=32",
}


def find_codec(text: str) -> Pipeline:
    """Return the pipeline of a preset or spec: stages joined by "+", each a name and, after ":", its parameters as NAME=VALUE.

    A preset is what it is without calibrated tables; `ladder_of` knows what it is with them.
    Parameters left out have their defaults. Raises InvalidInputError, which lists what is known.
    """
    try:
        return Pipeline(tuple(_parse_stage(stage) for stage in PRESETS.get(text, text).split("+")))
    except UnsupportedError as error:
        known = "; ".join(f"{kind} {', '.join(names)}" for kind, names in (("presets", PRESETS), *_known_stages()))
        raise InvalidInputError(f"codec {text!r}: {error}; known are {known}") from error


def _parse_stage(text: str) -> Stage:
    """Return the stage of "name" or "name:key=value,key=value"."""
    name, _, params = text.partition(":")
    if not any(name in names for _, names in _known_stages()):
        raise UnsupportedError(f"no stage is called {name!r}")
    return find_stage_class(name).build(dict(_parse_param(text, pair) for pair in params.split(",") if pair))


def _known_stages() -> tuple[tuple[str, list[str]], ...]:
    """Return the names of stages by their kind."""
    kinds = (("quantizers", QUANTIZERS), ("transforms", TRANSFORMS), ("byte stages", BYTE_STAGES))
    return tuple((kind, known_names(package)) for kind, package in kinds)


def _parse_param(stage: str, pair: str) -> tuple[str, Param]:
    """Return the name and the value of "key=value": an integer where it reads as one, else a string."""
    key, equals, value = pair.partition("=")
    if not key or not equals:
        raise InvalidInputError(f"codec stage {stage!r}: parameters are written NAME=VALUE, got {pair!r}")
    return key, int(value) if value.lstrip("-").isdecimal() else value
