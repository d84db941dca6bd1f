"""Sums of a few atoms of a dictionary: 4 bits a value down to 1, slow to encode, for cold storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvkernels import csr
from kvstore.core.errors import InvalidInputError
from kvstore.core.stages import Traits
from kvworker.calibrate.dictionary import dictionary
from kvworker.calibrate.statistics import Statistics
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk
from kvworker.codec.stages import Calibrated, Fields, Layout, Quantizer

_MOST_STEPS = 64
_SPLITS = (1, 2, 4)


@dataclass(frozen=True)
class Csr(Calibrated, Quantizer):
    """Write each head's vector as a sum of the atoms of an over-complete dictionary that matching pursuit finds.

    A value takes 32 * split * steps / D bits. Keys, before RoPE, lie near one low-dimensional set whatever the text; with positions rotated
    in they do not. Each layer and side has a dictionary of its own, learnt over calibration tokens; the paper also samples atoms from the
    prompt, which would have to travel with every chunk, and lets layers share. Encoding takes `steps` products with the whole dictionary.
    Coefficients end where float16 does, at 65,504.

    Paper: CSR (AAAI 2025, arXiv 2412.11741); its CSR-8 is the default here, 2 bits a value for heads of 128 channels. It learns with
    8,192 atoms and more by gradients; here atoms move by alternating least squares.

    Parameters
    ----------
    k_steps, v_steps : int
        Atoms of a piece: 1 to 64.
    k_split, v_split : int
        Pieces of a head's channels: 1, 2 or 4.
    atoms : int
        Of a dictionary: 16 to 32,768.
    artifact : str
        Digest of the calibrated dictionaries.
    """

    name: ClassVar[str] = "csr"
    traits: ClassVar[Traits] = Traits(is_token_granular=True)
    fitted: ClassVar[tuple[str, ...]] = ("atoms", "k_split", "k_steps", "v_split", "v_steps")
    k_steps: int = 8
    v_steps: int = 4
    k_split: int = 1
    v_split: int = 2
    atoms: int = 1024
    artifact: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        steps_fit = all(1 <= steps <= _MOST_STEPS for steps in (self.k_steps, self.v_steps))
        if not steps_fit or {self.k_split, self.v_split} - set(_SPLITS) or not 16 <= self.atoms <= csr.MOST_ATOMS:
            raise InvalidInputError(
                f"csr: {self.k_steps} and {self.v_steps} steps, {self.k_split} and {self.v_split} pieces, {self.atoms} atoms; "
                f"choose 1 to {_MOST_STEPS} steps, pieces in {_SPLITS}, 16 to {csr.MOST_ATOMS} atoms"
            )

    def fit(self, statistics: Statistics) -> Mapping[int, dict[str, torch.Tensor]]:
        """Return, per layer, k.dictionary and v.dictionary float32 (atoms, ceil(D / split))."""
        return {
            layer: {
                f"{side}.dictionary": dictionary(csr.pieces_of(seen.sample, split), self.atoms, steps)
                for (side, split, steps), seen in zip(self._sides(), (own.k, own.v), strict=True)
            }
            for layer, own in sorted(statistics.layers.items())
        }

    def _sides(self) -> tuple[tuple[str, int, int], tuple[str, int, int]]:
        """Return the sides with their pieces and steps."""
        return ("k", self.k_split, self.k_steps), ("v", self.v_split, self.v_steps)

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return atoms uint8 (L, H, T, 2 * split * steps), int16 by their bytes, and coefficients float16, for k and for v."""
        rows = (spec.n_layers, spec.kv_heads, spec.n_tokens)
        fields: dict[str, tuple[str, tuple[int, ...]]] = {}
        for side, split, steps in self._sides():
            fields[f"{side}.atoms"] = ("uint8", (*rows, 2 * split * steps))
            fields[f"{side}.coefficients"] = ("float16", (*rows, split * steps))
        return fields

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return atoms and coefficients of k and of v."""
        fields: Fields = {}
        for (side, split, steps), x in zip(self._sides(), (chunk.k, chunk.v), strict=True):
            found = csr.encode(x, self.table(f"{side}.dictionary", spec.layers, x.device), split, steps)
            fields[f"{side}.atoms"], fields[f"{side}.coefficients"] = found
        return fields

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k and v, sums of atoms rounded to the model's dtype."""
        found = []
        for (side, split, _), dim in zip(self._sides(), (spec.k_dim, spec.v_dim), strict=True):
            atoms, coefficients = (fields[f"{side}.{name}"] for name in ("atoms", "coefficients"))
            dictionaries = self.table(f"{side}.dictionary", spec.layers, atoms.device)
            found.append(csr.decode(atoms, coefficients, dictionaries, dim, split, DTYPES[spec.dtype]))
        return found[0], found[1]
