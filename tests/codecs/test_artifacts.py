"""Artifacts: bound to one model and one stage, named by what they hold, and never trusted because of where they lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvstore.core.api import Hit, PutNote, Status
from kvstore.core.blob import BufferedBlob, build_blob, parse_header
from kvstore.core.errors import CorruptError, FormatError, IdentityError, InvalidInputError, KVError, NotFoundError
from kvstore.core.key import ChunkKey, Kind
from kvstore.core.manifest import FieldSpec, Manifest, PartSpec
from kvstore.core.stages import PipelineSpec, StageSpec
from kvworker.calibrate.fit import complete
from kvworker.codec.artifact import Artifact
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.decode import decode_part
from kvworker.codec.specs import find_codec
from kvworker.codec.stages import Calibrated
from tests.contracts.codecs import encode, identity_for, make_passage, ready

SPACE, OTHER_SPACE = b"\1" * 32, b"\2" * 32
SUBJECT = StageSpec("skvq", (("group", 128), ("k_levels", 4), ("v_levels", 4)))
MODEL = identity_for((2, 2, 16, 24))


def make(**changes: Any) -> Artifact:
    """Return a small artifact."""
    tables = {
        3: {"k.order": torch.arange(4), "k.unit": torch.ones(1)},
        1: {"k.order": torch.arange(3), "half": torch.ones(2, 2, dtype=torch.bfloat16)},
    }
    return Artifact(**{"namespace": SPACE, "subject": SUBJECT, "by_layer": tables, **changes})


class ShelfOfOne:
    """A store that holds what was put last; only what artifacts need of one."""

    def __init__(self) -> None:
        self.held: dict[ChunkKey, bytes] = {}
        self.n_puts = 0

    def lookup(self, keys: list[ChunkKey]) -> list[Hit]:
        return [Hit(key, Status.READY if key in self.held else Status.ABSENT) for key in keys]

    def put(self, blob: bytearray, note: PutNote) -> None:
        self.n_puts += 1
        self.held[parse_header(blob).key] = bytes(blob)

    def get(self, key: ChunkKey) -> BufferedBlob | None:
        return BufferedBlob(self.held[key], "") if key in self.held else None


def test_an_artifact_comes_back_from_its_bytes() -> None:
    back = Artifact.from_bytes(make().to_bytes())
    assert (back.namespace, back.subject, back.digest) == (SPACE, SUBJECT, make().digest)
    assert {layer: {name: (t.dtype, t.tolist()) for name, t in tables.items()} for layer, tables in back.by_layer.items()} == {
        layer: {name: (t.dtype, t.tolist()) for name, t in tables.items()} for layer, tables in make().by_layer.items()
    }


@pytest.mark.parametrize(
    "other",
    [
        make(namespace=OTHER_SPACE),
        make(subject=StageSpec("skvq", (("group", 64), ("k_levels", 4), ("v_levels", 4)))),
        make(by_layer={1: {"a": torch.zeros(2)}}),
        make(by_layer={1: {"a": torch.zeros(2, 1)}}),
        make(by_layer={2: {"a": torch.zeros(2)}}),
        make(by_layer={1: {"b": torch.zeros(2)}}),
        make(by_layer={1: {"a": torch.zeros(2, dtype=torch.int32)}}),
    ],
)
def test_artifacts_that_differ_in_anything_have_other_names(other: Artifact) -> None:
    assert other.digest not in (make().digest, make(by_layer={1: {"a": torch.ones(2)}}).digest)


def test_the_order_in_which_tables_were_made_does_not_matter() -> None:
    shuffled = {layer: dict(reversed(tables.items())) for layer, tables in reversed(make().by_layer.items())}
    assert make(by_layer=shuffled).to_bytes() == make().to_bytes()


def lying(change: Callable[[Manifest], Manifest]) -> bytearray:
    """Return a blob whose digests match but whose manifest was changed before."""
    blob = make().to_bytes()
    manifest = parse_header(blob).manifest
    payloads = [[bytes(blob[p.offset + f.offset : p.offset + f.offset + f.nbytes]) for f in p.fields] for p in manifest.parts]
    return build_blob(change(manifest), payloads)


def test_an_artifact_that_bears_another_name_is_corrupt() -> None:
    with pytest.raises(CorruptError, match="its tables have the digest"):
        Artifact.from_bytes(lying(lambda m: replace(m, content=b"\3" * 32)))


def test_a_chunk_is_no_artifact_and_an_artifact_is_no_chunk() -> None:
    with pytest.raises(FormatError, match="holds alone KV coded as raw"):
        Artifact.from_bytes(encode(find_codec("raw"), MODEL, make_passage(MODEL, 3)))
    with pytest.raises(FormatError, match="holds no KV"):
        decode_part(parse_header(make().to_bytes()).manifest, 0, b"")


@pytest.mark.parametrize("layers", [((1,), (1,)), ((3,), (1,)), ((1, 2), (3,))])
def test_parts_that_are_not_one_layer_each_in_order_are_refused(layers: tuple[tuple[int, ...], ...]) -> None:
    parts = tuple(PartSpec(n, own, 1, 1, 1, (FieldSpec("a", "uint8", (1,)),)) for n, own in enumerate(layers))
    manifest = Manifest(SPACE, b"\3" * 32, Kind.ARTIFACT, b"", 1, "float32", PipelineSpec((SUBJECT,)), parts)
    with pytest.raises(FormatError, match="one part per layer, ascending"):
        Artifact.from_bytes(build_blob(manifest, [[b"a"], [b"b"]]))


@pytest.mark.parametrize("table", [torch.zeros(0), torch.zeros(2, dtype=torch.complex64), [1, 2]])
def test_what_is_no_table_is_refused_when_it_is_written(table: Any) -> None:
    with pytest.raises(InvalidInputError, match="table a of layer 1 must be a tensor of"):
        make(by_layer={1: {"a": table}}).to_bytes()


def test_a_byte_changed_anywhere_is_noticed() -> None:
    good = bytes(make().to_bytes())
    for at in range(0, len(good), 7):
        bad = bytearray(good)
        bad[at] ^= 1
        with pytest.raises(KVError):
            Artifact.from_bytes(bad)


def test_a_folder_keeps_artifacts_for_the_next_process(tmp_path: Path) -> None:
    digest = Artifacts(SPACE, tmp_path).add(make())
    assert Artifacts(SPACE, tmp_path).find(digest, SUBJECT).digest == digest
    assert [path.name for path in tmp_path.iterdir()] == [f"{digest}.artifact"]


def test_the_store_has_what_the_folder_lacks_and_the_folder_keeps_it(tmp_path: Path) -> None:
    store = ShelfOfOne()
    Artifacts(SPACE, tmp_path / "one").publish(Artifacts(SPACE, tmp_path / "one").add(make()), SUBJECT, store)  # type: ignore[arg-type]
    Artifacts(SPACE, tmp_path / "two", store).find(make().digest, SUBJECT)  # type: ignore[arg-type]
    assert Artifacts(SPACE, tmp_path / "two").find(make().digest, SUBJECT).digest == make().digest


def test_what_the_store_has_is_not_put_again(tmp_path: Path) -> None:
    """Workers publish before every chunk that needs tables, since a store may have lost them."""
    store, artifacts = ShelfOfOne(), Artifacts(SPACE, tmp_path)
    digest = artifacts.add(make())
    for _ in range(2):
        artifacts.publish(digest, SUBJECT, store)  # type: ignore[arg-type]
    assert store.n_puts == 1


def test_an_artifact_that_nobody_has_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="larder calibrate"):
        Artifacts(SPACE, tmp_path, ShelfOfOne()).find("ab" * 32, SUBJECT)  # type: ignore[arg-type]


@pytest.mark.parametrize("digest", ["", "ab", "../" * 20 + "abcd", "AB" * 32, "g" * 64, "é" * 64])
def test_a_name_that_is_no_digest_touches_no_file(tmp_path: Path, digest: str) -> None:
    with pytest.raises(InvalidInputError, match="64 lower-case hex digits"):
        Artifacts(SPACE, tmp_path).find(digest, SUBJECT)


def test_a_damaged_file_says_to_delete_it(tmp_path: Path) -> None:
    digest = Artifacts(SPACE, tmp_path).add(make())
    file = tmp_path / f"{digest}.artifact"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptError, match="delete it and run `larder calibrate` again"):
        Artifacts(SPACE, tmp_path).find(digest, SUBJECT)


def test_a_file_under_another_name_is_refused(tmp_path: Path) -> None:
    digest = Artifacts(SPACE, tmp_path).add(make())
    (tmp_path / f"{digest}.artifact").rename(tmp_path / f"{'ab' * 32}.artifact")
    with pytest.raises(CorruptError, match=f"holds artifact {digest[:16]}"):
        Artifacts(SPACE, tmp_path).find("ab" * 32, SUBJECT)


def test_an_artifact_of_another_stage_or_model_is_refused(tmp_path: Path) -> None:
    digest = Artifacts(SPACE, tmp_path).add(make())
    with pytest.raises(IdentityError, match="is asked for: run `larder calibrate`"):
        Artifacts(SPACE, tmp_path).find(digest, StageSpec("cq"))
    with pytest.raises(IdentityError, match="is asked for: run `larder calibrate`"):
        Artifacts(OTHER_SPACE, tmp_path).find(digest, SUBJECT)


def test_the_latest_artifact_of_a_subject_is_found_among_others(tmp_path: Path) -> None:
    artifacts = Artifacts(SPACE, tmp_path)
    old, new = artifacts.add(make()), artifacts.add(make(by_layer={1: {"a": torch.ones(2)}}))
    artifacts.add(make(subject=StageSpec("cq")))
    (tmp_path / "noise.artifact").write_bytes(b"noise")
    for age, digest in enumerate((new, old)):
        os.utime(tmp_path / f"{digest}.artifact", (1000 - age, 1000 - age))
    assert Artifacts(SPACE, tmp_path).latest(SUBJECT) == new
    assert Artifacts(SPACE, tmp_path).latest(StageSpec("pca")) is None


def test_a_completed_codec_names_its_artifact_in_every_chunk_key() -> None:
    codec = ready("skvq", MODEL)
    (stage,) = codec.stages
    assert isinstance(stage, Calibrated)
    assert len(stage.artifact) == 64
    assert codec.spec.variant() != find_codec("skvq").spec.variant()


def test_completing_without_statistics_says_what_to_run() -> None:
    with pytest.raises(NotFoundError, match="run `larder calibrate`"):
        complete(find_codec("sinks+skvq"), Artifacts(SPACE))


def test_a_codec_that_needs_nothing_is_complete() -> None:
    assert complete(find_codec("sinks+int8"), Artifacts(SPACE)) == find_codec("sinks+int8")


def test_an_artifact_of_other_layers_is_refused_with_a_typed_error() -> None:
    codec = ready("skvq", identity_for((1, 2, 16, 24)))
    with pytest.raises(InvalidInputError, match=r"has no table k\.groups of layer 1: run `larder calibrate` again"):
        encode(codec, MODEL, make_passage(MODEL, 3))


def test_a_chunk_that_does_not_fit_the_tables_is_refused_with_a_typed_error() -> None:
    """A manifest may claim another geometry than the model has; `check_geometry` is not the only wall."""
    codec, wide = ready("skvq", MODEL), identity_for((2, 2, 17, 24))
    blob = encode(ready("skvq", wide), wide, make_passage(wide, 3))
    manifest = parse_header(blob).manifest
    part = manifest.parts[0]
    data = bytes(blob[part.offset : part.offset + part.nbytes])
    with pytest.raises(FormatError, match="does not decode as skvq"):
        decode_part(replace(manifest, codec=codec.spec), 0, data, pipeline=codec)
