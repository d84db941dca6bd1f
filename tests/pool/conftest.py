"""One Ray cluster of three nodes on this machine, and one pool of two workers on it, for all tests of the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.pool.ray_warnings import RAY_WARNINGS

if TYPE_CHECKING:
    from tests.pool.scene import Scene


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bear Ray's own warnings in the tests of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for warning in RAY_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Yield the pool, its store and a client; Ray is imported where it is used only."""
    from tests.pool.scene import connected_cluster, opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        with connected_cluster() as cluster, opened(cluster, tmp_path_factory.mktemp("pool")) as scene:
            yield scene
