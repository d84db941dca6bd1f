"""What the stages of a codec share, and the byte stages: one file each, found by its name.

A byte stage turns bytes into fewer bytes and knows nothing of tensors. Stages that know tensors live with the worker and share
`Stage` and the way of being found.
"""

from __future__ import annotations

import dataclasses
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import ClassVar, Self, TypeVar

from kvstore.core.blob import Buffer
from kvstore.core.errors import InvalidInputError, UnsupportedError
from kvstore.core.stages import Param, StageSpec


@dataclasses.dataclass(frozen=True)
class Stage(ABC):
    """One step of a codec; a subclass is a frozen dataclass whose fields are its parameters.

    Every parameter has a default of exactly the type that it takes: int, float, str or bool. A value of another type is refused with
    InvalidInputError, so that equal stages always have equal fingerprints.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not type(field.default):
                raise InvalidInputError(f"{self.name}: {field.name} must be of type {type(field.default).__name__}, got {value!r}")

    @property
    def spec(self) -> StageSpec:
        """The name and the parameters, as a manifest holds them."""
        return StageSpec(self.name, tuple(sorted(vars(self).items())))

    @classmethod
    def build(cls, params: Mapping[str, Param]) -> Self:
        """Return the stage with these parameters and defaults for the others; unknown names raise UnsupportedError."""
        known = sorted(field.name for field in dataclasses.fields(cls))
        if unknown := sorted(set(params) - set(known)):
            raise UnsupportedError(f"codec stage {cls.name} has no parameter {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
        return cls(**params)


class ByteStage(Stage):
    """Pack the bytes of some fields of a part.

    A subclass has the parameter `fields`: the last word of the names of the fields it packs ("exponent" for "k.exponent"), or "" for
    every field.
    """

    fields: str

    def packs(self, field_name: str) -> bool:
        """Tell whether this stage packs the field."""
        return self.fields in ("", field_name.rpartition(".")[2])

    @abstractmethod
    def pack(self, data: Buffer) -> Buffer:
        """Return the packed bytes; equal bytes of one library version pack equally."""

    @staticmethod
    @abstractmethod
    def unpack(data: Buffer, raw_nbytes: int) -> Buffer:
        """Return exactly `raw_nbytes` bytes, or raise FormatError before allocating more than that."""


S = TypeVar("S", bound=Stage)


@cache
def stage_names(package: str) -> tuple[str, ...]:
    """Return the names of the stages that a package holds: one module each."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(import_module(package).__path__)))


@cache
def find_stage(package: str, name: str, kind: type[S]) -> type[S]:
    """Return the class called `name` in the module `name` of a package; UnsupportedError lists the known names."""
    if name not in stage_names(package):
        raise UnsupportedError(f"codec stage {name!r} is not known here; known: {', '.join(stage_names(package))}")
    module = import_module(f"{package}.{name}")
    classes = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, kind))
    return next(cls for cls in classes if getattr(cls, "name", "") == name)


def find_byte_stage(name: str) -> type[ByteStage]:
    """Return a byte stage by the name that a field's packing has in a manifest."""
    return find_stage(__name__, name, ByteStage)
