"""Has torch compile for the CPU what a worker's codecs spend their time in, before the worker serves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from kvkernels import compiled
from kvstore.core.identity import ModelIdentity
from kvworker.chunk import ChunkSpec
from kvworker.codec.pipeline import Pipeline, descend, expected_specs
from kvworker.codec.stages import Compiled

_TOKENS = 256  # of a passage: whether its values are so many that compiled forms are used
_log = logging.getLogger(__name__)


def compile_codecs(device: str, codecs: Sequence[Pipeline], identity: ModelIdentity) -> None:
    """Compile forms for the codecs that have some, where a C++ compiler is there and chunks of this model are large enough for them.

    Takes about eight seconds, less where torch keeps what it compiled before. It is not done beside requests, whose threads would wait for
    the interpreter for up to a second. Where the compiler fails, references do the same, slower.
    """
    work = forms_worth(codecs, identity) if device == "cpu" and compiled.has_compiler() else []
    begin = time.monotonic()
    try:
        for compile_forms in work:
            compile_forms()
    except Exception as error:  # whatever a compiler says
        _log.warning("codecs stay uncompiled and slower: %s: %s", type(error).__name__, error)
        return
    if work:
        _log.info("codecs were compiled in %.1f s", time.monotonic() - begin)


def forms_worth(codecs: Sequence[Pipeline], identity: ModelIdentity) -> list[Callable[[], None]]:
    """Return what compiles the forms that chunks of this model and of these codecs are coded with, each once."""
    found: dict[tuple[Compiled, ChunkSpec], Callable[[], None]] = {}
    for codec in codecs:
        for spec in expected_specs(identity, _TOKENS) if codec.crossing is None else ():
            last, _ = descend(codec.inner, spec)
            quantizer = codec.quantizer
            if isinstance(quantizer, Compiled) and quantizer.has_forms and last.n_values >= 2 * compiled.LEAST:
                kind = ChunkSpec(1, 1, 1, last.k_dim, last.v_dim, last.dtype)
                found[quantizer, kind] = lambda quantizer=quantizer, kind=kind: quantizer.compile(kind)  # type: ignore[misc]
    return list(found.values())
