"""What the stages of a codec share, and the byte stages: one file each, found by its name.

A byte stage turns bytes into fewer bytes and knows nothing of tensors. Stages that know tensors live with the worker and share
`Stage` and the way of being found.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import ClassVar, Self

from kvstore.core.blob import Buffer
from kvstore.core.discovery import find
from kvstore.core.errors import InvalidInputError, UnsupportedError
from kvstore.core.stages import Param, StageSpec, Traits


@dataclasses.dataclass(frozen=True)
class Stage(ABC):
    """One step of a codec; a subclass is a frozen dataclass whose fields are its parameters.

    Every parameter has a default of exactly the type that it takes: int, float, str or bool. A value of another type is refused with
    InvalidInputError, so that equal stages always have equal fingerprints.
    """

    name: ClassVar[str]
    traits: ClassVar[Traits] = Traits()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not type(field.default):
                raise InvalidInputError(f"{self.name}: {field.name} must be of type {type(field.default).__name__}, got {value!r}")

    @property
    def spec(self) -> StageSpec:
        """The name and the parameters, as a manifest holds them."""
        return StageSpec(self.name, tuple(sorted((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))))

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

    traits: ClassVar[Traits] = Traits(is_bit_exact=True)

    fields: str

    def packs(self, field_name: str) -> bool:
        """Tell whether this stage packs the field."""
        return self.fields in ("", field_name.rpartition(".")[2])

    @abstractmethod
    def pack(self, data: Buffer) -> Buffer:
        """Return the packed bytes; equal bytes of one library version pack equally."""

    @abstractmethod
    def unpack(self, data: Buffer, raw_nbytes: int) -> Buffer:
        """Return exactly `raw_nbytes` bytes, or raise FormatError before allocating more than that."""


@cache
def find_byte_stage(name: str) -> type[ByteStage]:
    """Return a byte stage by its name; UnsupportedError lists the known names."""
    found: type[ByteStage] = find(__name__, name)
    return found
