"""Forms of operators that torch compiles for the CPU, where a C++ compiler is there: equal to the references bit for bit, and faster.

Compiling takes seconds per head dimension and dtype, so no operator does it by being used: `int8_compiled.prepare` and
`kivi_compiled.prepare` do, once per process, and from then on operators use what they made wherever that fits. All else goes on through the
references, which work in slabs that stay in the cache. One thread may prepare while others use operators; two may not prepare at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Form = Callable[..., tuple[torch.Tensor, ...]]
Forms = dict[tuple[str, tuple[object, ...]], Form]
LEAST = 1 << 16
"""Values below which calling a compiled form costs more than it saves."""
_forms: Forms = {}


def has_compiler() -> bool:
    """Tell whether there is the C++ compiler that torch would use."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


@contextmanager
def preparing() -> Iterator[Forms]:
    """Collect forms that belong together; operators see all of them or none. Nothing is compiled by being called afterwards."""
    from torch._dynamo import config as tracing
    from torch._inductor import config as building

    made: Forms = {}
    torch.compiler.set_stance("default")
    try:
        with torch.no_grad(), tracing.patch(automatic_dynamic_shapes=False), building.patch(compile_threads=1):
            yield made
    finally:
        torch.compiler.set_stance("eager_on_recompile")
    _forms.update(made)


def forget() -> None:
    """Let go of all compiled forms, so that operators run their references."""
    _forms.clear()
    torch.compiler.set_stance("default")


def has_forms() -> bool:
    """Tell whether anything is compiled."""
    return bool(_forms)


def compile_form(made: Forms, name: str, form: Form, *sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Compile a form for tensors like these, with any length of the first axis, into `made`; return what it makes of them."""
    compiled = torch.compile(form)
    for x in sample:
        torch._dynamo.mark_dynamic(x, 0)
    out: tuple[torch.Tensor, ...] = compiled(*sample)
    made[name, _fixed(sample)] = compiled
    return out


def has_form(name: str, *tensors: torch.Tensor) -> bool:
    """Tell whether a form was compiled for tensors of this kind and is worth calling for the first of them."""
    x = tensors[0]
    return has_forms() and x.device.type == "cpu" and x.numel() >= LEAST and (name, _fixed(tensors)) in _forms


def call_form(name: str, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Run a compiled form on the CPU; where it would have to be compiled once more, it runs as plain torch."""
    with torch.no_grad():
        return _forms[name, _fixed(tensors)](*tensors)


def _fixed(tensors: tuple[torch.Tensor, ...]) -> tuple[object, ...]:
    """Return what a compiled form depends on: dtypes, and all axes but the first."""
    return tuple((x.dtype, tuple(x.shape[1:])) for x in tensors)
