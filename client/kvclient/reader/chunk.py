"""Decode the parts of stored chunks to numpy, for engines that have no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from kvclient.reader.artifact import Artifact
from kvclient.reader.calibrated import CALIBRATED
from kvclient.reader.fields import Fields, Geometry, Pair
from kvclient.reader.packings import PACKINGS
from kvclient.reader.quantizers import QUANTIZERS
from kvclient.reader.steps import Step, steps_of
from kvclient.reader.transforms import CROSS, TRANSFORMS, crossed, cut
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError, InvalidInputError, UnsupportedError
from kvstore.core.key import Kind
from kvstore.core.manifest import MAX_DECODED_NBYTES, Manifest
from kvstore.core.stages import Param, StageSpec

_QUANTIZERS = {**QUANTIZERS, **CALIBRATED}
KNOWN: dict[str, Mapping[str, Sequence[Param]]] = {
    CROSS: {},
    **{name: transform.params for name, transform in TRANSFORMS.items()},
    **{name: params for name, (_, params) in _QUANTIZERS.items()},
}


class ChunkReader:
    """Decodes the parts of one chunk: k before RoPE (L, H, T, D) and v (L, H, T, Dv) of a layer group, float32.

    The values are those that a worker decodes, rounded to the model's dtype and widened; where a codec sums up products (`pca`, `lorc`),
    they agree to 2**-20 of the largest value before that rounding. Arrays may be read-only views of what was given. Where a codec mixes
    layers (`cross`) part 0 comes first, and what it decodes to is kept; any other codec decodes its parts in any order.

    Raises UnsupportedError for a codec that is not known here, NotFoundError where a stage's artifact is not given, IdentityError for one
    of another model or stage, FormatError for a manifest that holds no KV, and CapacityError for one that claims too much.

    Parameters
    ----------
    manifest : Manifest
    artifacts : mapping of str to Artifact
        By digest in hex: those that the codec names, and any others.
    max_decoded_nbytes : int
        What K and V of the chunk may take in its dtype, see `Manifest.check_decoded`; arrays of 16-bit types take twice as much.
    """

    def __init__(
        self, manifest: Manifest, artifacts: Mapping[str, Artifact] | None = None, max_decoded_nbytes: int = MAX_DECODED_NBYTES
    ) -> None:
        if manifest.kind is Kind.ARTIFACT:
            raise FormatError("the blob is an artifact and holds no KV")
        manifest.check_decoded(max_decoded_nbytes)
        stages, self._packings = _split(manifest)
        self._manifest, self._steps = manifest, steps_of(manifest, stages, KNOWN, artifacts or {})
        self._geometries = [_geometry_of(manifest, index) for index in range(len(manifest.parts))]
        self._crossed: list[Pair] = []

    def part(self, index: int, data: Buffer) -> Pair:
        """Return k and v of layer group `index` from the verified bytes of its part.

        Raises FormatError for fields and tables that do not fit codec and geometry, and MissingExtraError where a field is packed and the
        package that unpacks it is not installed.
        """
        if not 0 <= index < len(self._geometries):
            raise InvalidInputError(f"part {index} was asked for; the chunk has parts 0 to {len(self._geometries) - 1}")
        fields = Fields(self._manifest.parts[index], memoryview(data).cast("B"), self._packings)
        with np.errstate(all="ignore"):  # parameters that overflow decode to infinity, as in torch; they are not worth a warning
            pair = self._decode(index, 0, fields, self._geometries[index])
        if index == 0 and fields.next_name == "need":
            fields.take("need", "float16", (self._manifest.n_tokens,))
        fields.check_all_taken()
        return pair

    def _decode(self, index: int, n_done: int, fields: Fields, geometry: Geometry) -> Pair:
        """Return K and V of part `index` as they are before the stage `n_done`, where their geometry is this."""
        step = self._steps[n_done]
        if step.name == CROSS:
            return self._from_crossed(index, n_done, fields)
        if step.name in _QUANTIZERS:
            return _QUANTIZERS[step.name][0](fields, geometry, step)
        transform = TRANSFORMS[step.name]
        return transform.restore(fields, geometry, step, lambda: self._decode(index, n_done + 1, fields, transform.inner(geometry, step)))

    def _from_crossed(self, index: int, n_done: int, fields: Fields) -> Pair:
        """Return what the crossing stage `n_done` was given of part `index`; all of it is in part 0."""
        if index == 0:
            geometries = [_behind(self._steps[:n_done], own) for own in self._geometries]
            self._crossed = cut(self._decode(0, n_done + 1, fields, crossed(geometries)), geometries)
        if not self._crossed:
            raise InvalidInputError(f"part {index} was given before part 0, which holds all layers of codec {self._manifest.codec.label}")
        return self._crossed[index]


def decode_part(manifest: Manifest, index: int, data: Buffer, artifacts: Mapping[str, Artifact] | None = None) -> Pair:
    """Return k and v of one layer group by itself; a codec that mixes layers raises InvalidInputError for every part but the first."""
    return ChunkReader(manifest, artifacts).part(index, data)


def _behind(steps: Sequence[Step], geometry: Geometry) -> Geometry:
    """Return the geometry of what transforms hand on."""
    return reduce(lambda own, step: TRANSFORMS[step.name].inner(own, step), steps, geometry)


def _split(manifest: Manifest) -> tuple[list[StageSpec], tuple[StageSpec, ...]]:
    """Return transforms and quantizer, and packings; UnsupportedError for anything but transforms, one quantizer, then packings."""
    names = [stage.name for stage in manifest.codec.stages]
    at = next((n for n, name in enumerate(names) if name in _QUANTIZERS), len(names))
    before, behind = names[:at], names[at + 1 :]
    is_known = set(before) <= {CROSS, *TRANSFORMS} and set(behind) <= set(PACKINGS) and len(set(before)) == len(before)
    if at == len(names) or not is_known or manifest.codec.artifact:
        raise UnsupportedError(
            f"codec {manifest.codec.label!r} is not known here; known: transforms, each once, of {CROSS}, {', '.join(TRANSFORMS)}; "
            f"one of {', '.join(_QUANTIZERS)}; then any of {', '.join(PACKINGS)}"
        )
    return list(manifest.codec.stages[: at + 1]), manifest.codec.stages[at + 1 :]


def _geometry_of(manifest: Manifest, index: int) -> Geometry:
    """Return the geometry that a part claims."""
    part = manifest.parts[index]
    if not part.layers or min(part.kv_heads, part.k_dim, part.v_dim, manifest.n_tokens) < 1:
        raise FormatError(f"part {index} has a dimension of 0")
    return Geometry(part.layers, len(part.layers), part.kv_heads, manifest.n_tokens, part.k_dim, part.v_dim, manifest.dtype)
