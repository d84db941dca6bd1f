"""Forms of operators that torch compiles for the CPU, where a C++ compiler is there: equal to the references bit for bit, and faster.

Compiling takes seconds per head dimension and dtype, so no operator does it by being used: `prepare` does, once per process, and from then
on operators use what it made wherever that fits. All else goes on through the references, which work in slabs that stay in the cache.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import torch

from kvkernels.checks import require_value_dtype

Form = Callable[..., tuple[torch.Tensor, ...]]
LEAST = 1 << 16
"""Values below which calling a compiled form costs more than it saves."""
_forms: dict[tuple[str, tuple[object, ...]], Form] = {}


def prepare(head_dim: int, dtype: torch.dtype) -> bool:
    """Compile `int8`, and `kivi` with 4 bits in groups of 32, for heads of this many channels; return False without a C++ compiler."""
    from kvkernels import int8_compiled, kivi_compiled

    require_value_dtype("dtype", dtype)
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return False
    int8_compiled.prepare(head_dim, dtype)
    kivi_compiled.prepare(head_dim, dtype)
    return True


def forget() -> None:
    """Let go of all compiled forms, so that operators run their references."""
    _forms.clear()


def has_forms() -> bool:
    """Tell whether anything is compiled."""
    return bool(_forms)


def compile_form(name: str, form: Form, *sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Compile a form for tensors like these, with any length of the first axis; return what it makes of them."""
    compiled = torch.compile(form)
    for x in sample:
        torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad():
        made: tuple[torch.Tensor, ...] = compiled(*sample)
    _forms[name, _fixed(sample)] = compiled
    return made


def has_form(name: str, *tensors: torch.Tensor) -> bool:
    """Tell whether a form was compiled for tensors of this kind and is worth calling for the first of them."""
    x = tensors[0]
    return has_forms() and x.device.type == "cpu" and x.numel() >= LEAST and (name, _fixed(tensors)) in _forms


def call_form(name: str, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Run a compiled form on the CPU; where it would have to be compiled once more, it runs as plain torch."""
    with torch.no_grad(), torch.compiler.set_stance("eager_on_recompile"):
        return _forms[name, _fixed(tensors)](*tensors)


def _fixed(tensors: tuple[torch.Tensor, ...]) -> tuple[object, ...]:
    """Return what a compiled form depends on: dtypes, and all axes but the first."""
    return tuple((x.dtype, tuple(x.shape[1:])) for x in tensors)
