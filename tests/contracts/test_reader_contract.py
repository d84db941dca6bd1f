"""What the client's reader promises: every codec that the worker has decodes in numpy to the worker's values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given

from kvclient.reader.artifact import read_artifact
from kvclient.reader.chunk import KNOWN, ChunkReader
from kvclient.reader.fields import Pair
from kvclient.reader.packings import PACKINGS
from kvstore.core.blob import parse_header
from kvstore.core.identity import ModelIdentity
from kvworker.chunk import DTYPES, PassageKV
from kvworker.codec.artifact import Artifact
from kvworker.codec.pipeline import Pipeline
from kvworker.codec.specs import find_codec
from kvworker.codec.stages import Calibrated, Tables
from tests.contracts.codecs import UNIT_ROUNDOFF, cases, decode, encode, identity_for, make_passage, parts_of, ready
from tests.contracts.passages import each_example, passages

CODECS = [case.codec for case in cases() if {stage.name for stage in find_codec(case.codec).stages} <= {*KNOWN, *PACKINGS}]
"""Those that the reader knows: a method that was never released it may not; golden chunks say which it must."""
CALIBRATED = [codec for codec in CODECS if find_codec(codec).traits.needs_artifact]


def read_in_numpy(pipeline: Pipeline, blob: bytearray) -> list[Pair]:
    """Return K and V of every part as the client's reader decodes them, with artifacts that went through bytes."""
    needed = [stage for stage in pipeline.stages if isinstance(stage, Calibrated)]
    manifest = parse_header(blob).manifest
    blobs = [Artifact(manifest.namespace, stage.subject, tables_of(stage)).to_bytes() for stage in needed]
    reader = ChunkReader(manifest, {artifact.digest: artifact for artifact in map(read_artifact, blobs)})
    return [reader.part(index, data) for index, data in enumerate(parts_of(blob))]


def tables_of(stage: Calibrated) -> Mapping[int, Tables]:
    """Return the tables that a stage is bound to."""
    assert stage._by_layer is not None
    return stage._by_layer


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec not in CALIBRATED])
@each_example
@given(drawn=passages())
def test_numpy_and_torch_decode_equal_values(codec: str, drawn: tuple[ModelIdentity, PassageKV]) -> None:
    """Equal, not close: both round once per operation in float32 and once to the model's type."""
    identity, passage = drawn
    blob = encode(find_codec(codec), identity, passage)
    ((k, v),), (back,) = read_in_numpy(find_codec(codec), blob), decode(find_codec(codec), blob)
    np.testing.assert_array_equal(k, back.k.float().numpy())
    np.testing.assert_array_equal(v, back.v.float().numpy())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CALIBRATED)
def test_numpy_and_torch_decode_values_of_calibrated_codecs_alike(codec: str, dtype: str) -> None:
    """Equal where nothing is summed up; sums of products agree to 2**-20 of the largest value, then one rounding (FORMAT.md, 5)."""
    identity = identity_for((2, 2, 16, 24), (1, 3, 7, 9), dtype=dtype)
    pipeline = ready(codec, identity)
    blob = encode(pipeline, identity, make_passage(identity, 33))
    is_summed = bool({"pca", "lorc"} & {stage.name for stage in pipeline.stages})
    for pair, back in zip(read_in_numpy(pipeline, blob), decode(pipeline, blob), strict=True):
        for x, expected in zip(pair, (back.k.float().numpy(), back.v.float().numpy()), strict=True):
            slack = 2.0**-20 * float(np.abs(expected).max()) if is_summed else 0.0
            np.testing.assert_allclose(x, expected, rtol=2 * UNIT_ROUNDOFF[dtype] if is_summed else 0, atol=slack)
