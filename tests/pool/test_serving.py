"""What Ray Serve is told of a pool; tests/pool/check_serving.py runs one under the real Serve."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvworker.ray.settings import FRONT
from tests.pool.served import APPLICATION


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with a Serve that notes what it is asked for, and with pools that note when they begin and end as `noted`."""
    noted: list[object] = []

    def deployment(**options: object) -> Callable[[type], SimpleNamespace]:
        noted.append(options)
        return lambda kind: SimpleNamespace(bind=kind)

    @contextmanager
    def pooled(config: Any) -> Iterator[tuple[SimpleNamespace, None]]:
        noted.append(config.ray.workers)
        yield SimpleNamespace(address="192.0.2.1:7421"), None
        noted.append("drained")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=SimpleNamespace(deployment=deployment)))
    monkeypatch.delitem(sys.modules, "kvworker.ray.serving", raising=False)
    module = importlib.import_module(APPLICATION.partition(":")[0])
    monkeypatch.delitem(sys.modules, "kvworker.ray.serving")
    monkeypatch.setattr(module, "pooled", pooled)
    monkeypatch.setattr(module, "log_to_stderr", lambda _: None)
    return SimpleNamespace(application=getattr(module, APPLICATION.partition(":")[2]), noted=noted)


def test_serve_places_the_front_by_its_resource_and_ends_the_pool_with_it(serving: Any, tmp_path: Path) -> None:
    """It takes no processor from workers; its configuration is the file's."""
    (tmp_path / "worker.toml").write_text("[ray]\nworkers = 3\n")
    pool = serving.application({"config": str(tmp_path / "worker.toml")})
    assert pool.address() == "192.0.2.1:7421"
    (options, n_workers) = serving.noted
    assert options["ray_actor_options"] == {"num_cpus": 0, "resources": {FRONT: 1}}
    assert n_workers == 3
    del pool
    assert serving.noted[-1] == "drained"
