"""Where calibrated stages find their tables: memory, a folder of this machine, then the store."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from kvstore.codecs import Stage
from kvstore.core.api import PutNote, Status, StoreAPI
from kvstore.core.blob import HEADER_NBYTES, header_nbytes, parse_header
from kvstore.core.errors import CorruptError, IdentityError, KVError, NotFoundError
from kvstore.core.key import ChunkKey, Kind
from kvstore.core.stages import StageSpec
from kvworker.codec.artifact import Artifact, artifact_key
from kvworker.codec.stages import Calibrated

AnyStage = TypeVar("AnyStage", bound=Stage)
ARTIFACTS = "artifacts"
"""The folder of artifacts within a worker's folder of one model."""
MAX_NBYTES = 16 << 30
"""The largest artifact that is read."""


class Artifacts:
    """The artifacts of one model. Thread-safe.

    Parameters
    ----------
    namespace : bytes
        Of the model identity; another model's artifacts are refused.
    folder : Path or None
        Where they are kept on this machine, one file each, named by digest; None keeps them in memory only.
    store : StoreAPI or None
        Where those that the folder lacks are looked for.
    """

    def __init__(self, namespace: bytes, folder: Path | None = None, store: StoreAPI | None = None) -> None:
        self._namespace, self._folder, self._store = namespace, folder, store
        self._known: dict[str, Artifact] = {}
        self._bound: dict[Stage, Stage] = {}
        self._lock = threading.Lock()

    def add(self, artifact: Artifact) -> str:
        """Keep an artifact, in the folder too if there is one; return its digest. Another model's raises IdentityError."""
        self._check(artifact, artifact.subject)
        with self._lock:
            self._known[artifact.digest] = artifact
        path = self._path(artifact.digest)
        if path is not None and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft = path.with_suffix(f".{os.getpid()}.draft")
            draft.write_bytes(artifact.to_bytes())
            os.replace(draft, path)
        return artifact.digest

    def find(self, digest: str, subject: StageSpec) -> Artifact:
        """Return the artifact of this digest that was fitted for `subject`.

        Raises NotFoundError where nobody has it, IdentityError where it is another stage's or another model's, CorruptError for a damaged
        file and InvalidInputError for what is no digest.
        """
        key = artifact_key(self._namespace, subject, digest)
        with self._lock:
            artifact = self._known.get(digest)
        if artifact is None:
            artifact = self._from_folder(digest) or self._from_store(key)
        if artifact is None:
            raise NotFoundError(f"artifact {digest[:16]} of codec stage {subject.name} is not here: run `larder calibrate` for this model")
        self._check(artifact, subject)
        self.add(artifact)
        return artifact

    def bind(self, stage: AnyStage) -> AnyStage:
        """Return a stage that can be used: a calibrated one with its tables, any other as it is. Raises what `find` raises."""
        if not isinstance(stage, Calibrated):
            return stage
        if stage not in self._bound:
            if not stage.artifact:
                raise NotFoundError(f"codec stage {stage.name} names no artifact: run `larder calibrate` for this model")
            bound = stage.bound(self.find(stage.artifact, stage.subject).by_layer)
            with self._lock:
                self._bound[stage] = bound
        found = self._bound[stage]
        assert isinstance(found, type(stage))
        return found

    def latest(self, subject: StageSpec) -> str | None:
        """Return the digest of the newest artifact in the folder, or else in memory, that was fitted for `subject`."""
        if self._folder is not None:
            files = sorted(self._folder.glob("*.artifact"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
            for path in files:
                if _subject_of(path) == subject:
                    return path.stem
        with self._lock:
            return next((digest for digest, known in reversed(self._known.items()) if known.subject == subject), None)

    def publish(self, digest: str, subject: StageSpec, store: StoreAPI) -> None:
        """Put an artifact into a store that lacks it, where other workers of the same tenant find it."""
        if store.lookup([artifact_key(self._namespace, subject, digest)])[0].status is not Status.ABSENT:
            return
        store.put(self.find(digest, subject).to_bytes(), PutNote(source="calibration"))

    def _check(self, artifact: Artifact, subject: StageSpec) -> None:
        """Raise IdentityError unless an artifact is this model's and was fitted for `subject`."""
        if (artifact.namespace, artifact.subject) != (self._namespace, subject):
            raise IdentityError(
                f"artifact {artifact.digest[:16]} was fitted for {artifact.subject} of model {artifact.namespace.hex()[:16]}, "
                f"but {subject} of model {self._namespace.hex()[:16]} is asked for: run `larder calibrate` for this model"
            )

    def _path(self, digest: str) -> Path | None:
        """Return the file of a digest that was checked to be one."""
        return self._folder / f"{digest}.artifact" if self._folder is not None else None

    def _from_folder(self, digest: str) -> Artifact | None:
        """Return an artifact from its file, or None without one."""
        path = self._path(digest)
        if path is None or not path.exists():
            return None
        if path.stat().st_size > MAX_NBYTES:
            raise CorruptError(f"{path} has {path.stat().st_size} B, more than an artifact's {MAX_NBYTES} B; delete it")
        try:
            artifact = Artifact.from_bytes(path.read_bytes())
        except KVError as error:
            raise CorruptError(f"{path} is damaged ({error}); delete it and run `larder calibrate` again") from error
        if artifact.digest != digest:
            raise CorruptError(f"{path} holds artifact {artifact.digest[:16]}; delete it and run `larder calibrate` again")
        return artifact

    def _from_store(self, key: ChunkKey) -> Artifact | None:
        """Return an artifact from the store, or None where there is no store or it has none."""
        reader = self._store.get(key) if self._store is not None else None
        if reader is None:
            return None
        with closing(reader):
            if reader.nbytes > MAX_NBYTES or reader.manifest.kind is not Kind.ARTIFACT:
                raise CorruptError(
                    f"the store holds {reader.nbytes} B of {reader.manifest.kind.name.lower()} KV under the key of an artifact"
                )
            parts = [bytes(reader.part(n)) for n in range(len(reader.manifest.parts))]
        return Artifact.from_parts(reader.manifest, parts)


def _subject_of(path: Path) -> StageSpec | None:
    """Return what an artifact's file was fitted for, from its verified header; None for a file that is none."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_NBYTES)
            head += file.read(header_nbytes(head) - HEADER_NBYTES)
        manifest = parse_header(head).manifest
    except (KVError, OSError):
        return None
    return manifest.codec.stages[0] if manifest.kind is Kind.ARTIFACT and len(manifest.codec.stages) == 1 else None
