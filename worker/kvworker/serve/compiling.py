"""Has torch compile for the CPU what a worker's codecs spend their time in, while the worker serves."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence

import torch

from kvkernels import compiled
from kvstore.core.identity import ModelIdentity
from kvworker.chunk import ChunkSpec
from kvworker.codec.pipeline import Pipeline, descend, expected_specs
from kvworker.codec.stages import Compiled

_TOKENS = 256  # of a passage: whether its values are so many that compiled forms are used
_LEAST_URGENT = 19
_log = logging.getLogger(__name__)


def compile_in_background(device: str, codecs: Sequence[Pipeline], identity: ModelIdentity) -> threading.Thread | None:
    """Begin to compile forms for the codecs that have some, on a thread of the lowest priority; return it, None where it is not worth it.

    Requests go on with what there is: operators use compiled forms from when they are there, with results that are equal to the last bit.
    """
    work = forms_worth(codecs, identity) if device == "cpu" and compiled.has_compiler() else []
    if not work:
        return None
    thread = threading.Thread(target=_compile, args=(work, torch.get_num_threads()), name="compile", daemon=True)
    thread.start()
    return thread


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


def _compile(work: Sequence[Callable[[], None]], n_threads: int) -> None:
    """Do all of it, behind everything else that the machine does."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_URGENT)
    torch.set_num_threads(n_threads)  # which a new thread has of its own, and compiled code is made for
    for compile_forms in work:
        try:
            compile_forms()
        except Exception as error:  # whatever a compiler says: references do the same, slower
            _log.warning("codecs stay uncompiled and slower: %s: %s", type(error).__name__, error)
            return
    _log.info("codecs are compiled")
