"""The current cost model, shared by requests and kept in a file per model and device."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from kvstore.core.errors import KVError
from kvstore.planners.cost import CostModel
from kvstore.planners.samples import CostSample, WaitSample


class CostBook:
    """Holds the newest cost model. Thread-safe; reading never waits for a writer's arithmetic."""

    def __init__(self, model: CostModel, path: Path | None = None) -> None:
        self._model, self._path = model, path
        self._lock = threading.Lock()

    @property
    def model(self) -> CostModel:
        """The newest model."""
        return self._model

    def observe(self, samples: Iterable[CostSample | WaitSample]) -> None:
        """Take in what a request measured."""
        with self._lock:
            model = self._model
            for sample in samples:
                model = model.observe(sample)
            self._model = model

    def save(self) -> None:
        """Write the model to its file, complete or not at all; without a file, do nothing."""
        if self._path is None:
            return
        draft = self._path.with_suffix(f".{os.getpid()}.draft")  # workers may share the folder
        draft.write_text(json.dumps(self._model.to_json()), encoding="utf-8")
        os.replace(draft, self._path)


def saved_costs(path: Path | None) -> CostModel | None:
    """Return the model that an earlier worker kept; None if there is none or it cannot be read, so that it is measured again."""
    try:
        return CostModel.from_json(json.loads(path.read_text(encoding="utf-8"))) if path and path.exists() else None
    except (OSError, ValueError, RecursionError, KVError):
        return None
