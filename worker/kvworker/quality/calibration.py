"""What was measured about one model's answers under reuse, and the file that keeps it: bound to the model's identity, checked when read."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from kvstore.core.errors import CorruptError, IdentityError, InvalidInputError, UnsupportedError
from kvstore.core.stages import StageSpec
from kvworker.answer.policy import parse_policy
from kvworker.codec.pipeline import Pipeline
from kvworker.quality import confidence
from kvworker.quality.variants import ReadAs

FORMAT = "larder-quality/2"
LOSSLESS = "lossless"
KNOWN, ALL = "known", "all"
SHIPPED = "larder-quality.json"
"""The file of a calibration that comes with a model, beside its weights."""
DOUBT = 0.05
"""With which probability a choice may lose more than it is said to lose at most."""
_MOST_BYTES = 4 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """One combination of reading, codec and policy.

    Parameters
    ----------
    reading, codec, policy : str
        How passages were read, `codec_id` of how they were stored, and the spec of what was repaired.
    n_asked, n_lost : int
        Questions that count, and those of them whose answer was not full prefill's.
    cost : float
        Seconds to the first token over those of full prefill, both without a store; the least of the first questions, which all were asked.
    kl : float
        Mean KL divergence of the next-token distribution from full prefill's, in nats.
    """

    reading: str
    codec: str
    policy: str
    n_asked: int
    n_lost: int
    cost: float
    kl: float

    @property
    def loss(self) -> float:
        """The share of answers that were lost."""
        return self.n_lost / self.n_asked

    def at_most(self, n_rivals: int) -> float:
        """Return the loss that is not exceeded, with 95 % confidence in that of all of `n_rivals` combinations that one is chosen from."""
        return confidence.at_most(self.n_asked, self.n_lost, DOUBT / n_rivals)

    @property
    def at_least(self) -> float:
        """The loss that is reached, with 95 % confidence."""
        return confidence.at_least(self.n_asked, self.n_lost, DOUBT)


@dataclass(frozen=True)
class Calibration:
    """All that was measured of one model on one device.

    `basis` says which questions count: "known" those that full prefill answers right and is sure of, "all" where the model knows too few.
    """

    namespace: str
    device: str
    basis: str
    date: str
    rows: tuple[Measured, ...]

    def find(self, reading: str, codec: str, policy: str) -> Measured | None:
        """Return what was measured of one combination."""
        return next((row for row in self.rows if (row.reading, row.codec, row.policy) == (reading, codec, policy)), None)

    def save(self, path: Path) -> None:
        """Write the file, complete or not at all."""
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, path)


def codec_id(codec: Pipeline) -> str:
    """Return what decides a codec's loss: its stages that know tensors with their parameters, or "lossless" for all that lose nothing."""
    if codec.traits.is_bit_exact:
        return LOSSLESS
    return "+".join(_stage_id(stage.spec) for stage in (*codec.transforms, codec.quantizer))


def _stage_id(spec: StageSpec) -> str:
    """Return a stage as a codec's text spells it, its artifact by the first digits."""
    params = ",".join(f"{key}={str(value)[:8] if key == 'artifact' else value}" for key, value in spec.params)
    return f"{spec.name}:{params}" if params else spec.name


def calibration_path(folder: Path, device: str) -> Path:
    """Return the file of a device in a worker's folder of one model."""
    return folder / f"quality-{device.replace(':', '')}.json"


def load_calibration(path: Path, namespace: bytes) -> Calibration | None:
    """Return what was measured, or None if there is no file.

    Raises CorruptError for a file that cannot be read as one, UnsupportedError for another format, and IdentityError for that of
    another model, which other weights, layouts and dtypes make it.
    """
    if not path.exists():
        return None
    found = _parse(path)
    if found.namespace != namespace.hex():
        raise IdentityError(
            f"quality calibration {path} is of model {found.namespace[:16]}, this one is {namespace.hex()[:16]}; {_remedy(path)}"
        )
    return found


def shipped_calibration(model_dir: Path, namespace: bytes) -> Calibration | None:
    """Return the calibration that came with a model's weights; None, and a line in the log, for one that is not of these weights."""
    try:
        return load_calibration(model_dir / SHIPPED, namespace)
    except (IdentityError, CorruptError, UnsupportedError) as error:
        _log.warning("what came with the model does not count: %s", error)
        return None


def _parse(path: Path) -> Calibration:
    """Return the content of a file."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size} B, at most {_MOST_BYTES} B are read")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise UnsupportedError(f"quality calibration {path} has format {content.get('format')!r}, not {FORMAT}; {_remedy(path)}")
        rows = tuple(_row(row) for row in _of_type(content, "rows", list))
        namespace, device, basis, date = (_of_type(content, key, str) for key in ("namespace", "device", "basis", "date"))
        return Calibration(namespace, device, basis, date, rows)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptError(f"quality calibration {path} is damaged ({error}); {_remedy(path)}") from error


def _row(value: Any) -> Measured:
    """Return a row of the file; raises ValueError for anything that cannot have been measured."""
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(Measured)}:
        raise ValueError(f"a row is not of {', '.join(field.name for field in fields(Measured))}")
    texts = [_of_type(value, key, str) for key in ("reading", "codec", "policy")]
    counts = [_of_type(value, key, int) for key in ("n_asked", "n_lost")]
    measures = [float(_of_type(value, key, float)) for key in ("cost", "kl")]
    if texts[0] not in get_args(ReadAs) or not 0 <= counts[1] <= counts[0] or counts[0] < 1:
        raise ValueError(f"a row says reading {texts[0]!r}, {counts[1]} lost of {counts[0]} asked")
    if not all(math.isfinite(x) and x >= 0 for x in measures):
        raise ValueError(f"a row says cost {measures[0]}, KL {measures[1]}")
    try:
        parse_policy(texts[2])
    except InvalidInputError as error:
        raise ValueError(str(error)) from error
    return Measured(*texts, *counts, *measures)


def _of_type(value: Mapping[str, Any], key: str, kind: type) -> Any:
    """Return a field of the file; raises ValueError unless it has the type."""
    if type(value.get(key)) is not kind:
        raise ValueError(f"{key} is {value.get(key)!r}, not of type {kind.__name__}")
    return value[key]


def _remedy(path: Path) -> str:
    return f"run `larder calibrate` again, or delete {path.name} to serve without"
