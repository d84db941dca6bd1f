"""What passages are stored as: the codec asked for, or a safer one where a passage would lose more by it than was declared."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from kvstore.core.blob import BufferedBlob, parse_header
from kvstore.core.errors import InvalidInputError, NotFoundError, UnsupportedError
from kvstore.core.identity import ModelIdentity
from kvstore.core.key import ChunkKey, Kind
from kvstore.core.stages import PipelineSpec
from kvstore.planners.cost import CostModel
from kvstore.planners.packing import Sized, packing_pays
from kvworker.answer.prompt import DEVICE
from kvworker.calibrate.fit import complete
from kvworker.calibrate.probes import latest_probes
from kvworker.chunk import KVChunk, PassageKV
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.decode import decode_chunk
from kvworker.codec.pipeline import Pipeline
from kvworker.codec.presets import FINE_KEY_BITS, LADDER, Preset
from kvworker.codec.specs import find_codec
from kvworker.engine.engine import N_PROBES
from kvworker.quality.errors import Errors, Probes, errors_of

_FIRST, _LEAST, _SHARE = 8, 64, 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rung:
    """A codec ready for use, and what a passage may lose by it; None where nobody limits it.

    `plain` is the codec without its byte stages, where costs may choose between the two.
    """

    name: str
    codec: Pipeline
    limit: float | None = None
    plain: Pipeline | None = None


@dataclass(frozen=True)
class Ladder:
    """Codecs from the one asked for to the safest. Nothing that is stored is encoded again: it is read as it is.

    Parameters
    ----------
    rungs : tuple of Rung
        At least one; on the last one everything is stored.
    identity : ModelIdentity
        Whose KV it is.
    probes : mapping of int to tensor
        Queries that attention is judged by, by layer; empty where the model was not calibrated.
    """

    rungs: tuple[Rung, ...]
    identity: ModelIdentity
    probes: Probes

    @property
    def first(self) -> Pipeline:
        """The codec asked for."""
        return self.rungs[0].codec

    @property
    def codecs(self) -> list[Pipeline]:
        """All codecs that a passage may be stored as, the one asked for first."""
        return [codec for rung in self.rungs for codec in (rung.codec, rung.plain) if codec is not None]

    @property
    def n_observed(self) -> int:
        """How many rows of a passage are to be observed for its codec; 0 where none goes by queries."""
        return N_PROBES if any(codec.traits.is_query_aware for codec in self.codecs) else 0

    def codec_of(self, spec: PipelineSpec) -> Pipeline:
        """Return the one of `codecs` that a manifest names, or raise UnsupportedError."""
        found = next((codec for codec in self.codecs if codec.spec == spec), None)
        if found is None:
            raise UnsupportedError(f"codec {spec.label} is none that {self.rungs[0].name} may be stored as")
        return found

    def keys(self, content: bytes) -> list[ChunkKey]:
        """Return where a passage's chunk may be, the key asked for first."""
        return [ChunkKey(self.identity.namespace, content, codec.spec.variant()) for codec in self.codecs]

    def choose(self, kv: PassageKV, content: bytes) -> Rung:
        """Return the first rung by which a sample of the passage loses no more than its limit."""
        sample = sample_of(kv, content)
        for rung, safer in zip(self.rungs, self.rungs[1:], strict=False):
            if rung.limit is None:
                return rung
            why = self._breach(rung, sample)
            if not why:
                return rung
            _log.warning("passage %s is not stored as %s but as %s: %s", content.hex()[:12], rung.name, safer.name, why)
        return self.rungs[-1]

    def form(self, kv: PassageKV, content: bytes, costs: CostModel) -> Pipeline:
        """Return the codec that a passage is stored with: of the rung that `choose` returns the form that is read sooner."""
        rung = self.choose(kv, content)
        if rung.plain is None or self._is_packed(rung.codec, rung.plain, sample_of(kv, content), kv[0].spec.n_tokens, costs):
            return rung.codec
        return rung.plain

    def _is_packed(self, packed: Pipeline, plain: Pipeline, sample: PassageKV, n_tokens: int, costs: CostModel) -> bool:
        """Tell whether byte stages save more of the way of `n_tokens` tokens like the sample's than unpacking takes."""
        manifest = parse_header(packed.encode(sample, self.identity, Kind.ALONE, bytes(32))).manifest
        fields, share = [field for part in manifest.parts for field in part.fields], n_tokens / manifest.n_tokens
        packed_nbytes, nbytes = (share * sum(sizes) for sizes in zip(*((f.nbytes, f.raw_nbytes) for f in fields), strict=True))
        return packing_pays(costs, Sized(packed.spec.label, packed_nbytes), Sized(plain.spec.label, nbytes), {DEVICE})

    def _breach(self, rung: Rung, sample: PassageKV) -> str:
        """Return why a sample cannot be stored by a rung, or ""."""
        try:
            errors = lost_by(rung.codec, sample, self.identity, self.probes)
        except InvalidInputError as error:
            return str(error)
        limit = rung.limit or 0.0
        if max(errors.k, errors.v, errors.mean_attention) <= limit:
            return ""
        worst = f", worst in layer {errors.worst_layer}" if errors.attention else ""
        return f"K is off by {errors.k:.3f}, V by {errors.v:.3f}, attention by {errors.mean_attention:.3f}{worst}; the limit is {limit:g}"


def ladder_of(text: str, identity: ModelIdentity, artifacts: Artifacts, needs_fine_keys: bool = False) -> Ladder:
    """Return the ladder of a preset, which ends lossless, or that of a codec text, which is that codec and nothing else.

    A preset takes calibrated tables where the model has some, or statistics to fit them with. Where keys need care, presets that give them
    fewer than 4 bits are left out. Raises what `find_codec` and `complete` raise.
    """
    wanted = next((n for n, preset in enumerate(LADDER) if preset.name == text), None)
    if wanted is None:
        return Ladder((Rung(text, complete(find_codec(text), artifacts)),), identity, {})
    presets = [preset for preset in LADDER[: wanted + 1] if not needs_fine_keys or preset.key_bits >= FINE_KEY_BITS]
    if presets[-1].name != text:
        _log.warning("this model's keys need %d bits: passages are stored as %s, not as %s", FINE_KEY_BITS, presets[-1].name, text)
    rungs = tuple(_rung_of(preset, ready_preset(preset, artifacts)) for preset in reversed(presets))
    return Ladder(rungs, identity, latest_probes(artifacts))


def _rung_of(preset: Preset, codec: Pipeline) -> Rung:
    """Return a preset's rung; its byte stages are a matter of speed. Without any, what loses nothing is stored as it is."""
    if not codec.byte_stages:
        return Rung(preset.name, codec, preset.limit or None)
    plain = find_codec("raw") if codec.traits.is_bit_exact else Pipeline((*codec.transforms, codec.quantizer))
    return Rung(preset.name, codec, preset.limit or None, plain)


def ready_preset(preset: Preset, artifacts: Artifacts) -> Pipeline:
    """Return a preset's codec, calibrated where that is possible."""
    if preset.calibrated:
        try:
            return complete(find_codec(preset.calibrated), artifacts)
        except NotFoundError:
            _log.info("preset %s: the model was not calibrated, so it is %s; run `larder calibrate`", preset.name, preset.plain)
    return find_codec(preset.plain)


def sample_of(kv: PassageKV, content: bytes) -> PassageKV:
    """Return the first 8 tokens of a passage and a run of a 64th of the others, 64 at least, whose place the passage's content decides."""
    n_tokens = kv[0].spec.n_tokens
    n_run = max(_LEAST, n_tokens // _SHARE)
    n_places = n_tokens - _FIRST - n_run + 1
    if n_places < 2:
        return kv
    start = _FIRST + int.from_bytes(content[:8], "little") % n_places
    rows = torch.cat((torch.arange(_FIRST), torch.arange(start, start + n_run)))
    return tuple(_rows_of(chunk, rows.to(chunk.k.device)) for chunk in kv)


def _rows_of(chunk: KVChunk, rows: torch.Tensor) -> KVChunk:
    """Return some rows of a chunk, without their need."""
    k, v = (x.index_select(2, rows) for x in (chunk.k, chunk.v))
    return KVChunk(k, v, asked=chunk.asked)


def lost_by(codec: Pipeline, kv: PassageKV, identity: ModelIdentity, probes: Probes) -> Errors:
    """Return what a codec does to a passage; raises InvalidInputError for one that it refuses."""
    plain = tuple(replace(chunk, need=None) for chunk in kv)
    reader = BufferedBlob(codec.encode(plain, identity, Kind.ALONE, bytes(32)), "")
    parts: Sequence[memoryview] = [memoryview(reader.part(n)) for n in range(len(kv))]
    return errors_of(plain, decode_chunk(reader.manifest, parts, codec, str(kv[0].k.device)), identity.layout, probes)
