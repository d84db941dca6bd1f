"""One Ray cluster of three nodes on this machine, and one pool of two workers on it, for all tests of the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool.scene import Scene, connected_cluster, opened

# What Ray leaves behind in the process that starts a cluster, and what it announces of later versions.
RAY_WARNINGS = (
    "ignore:subprocess [0-9]+ is still running:ResourceWarning",
    "ignore:unclosed file:ResourceWarning",
    "ignore:.*Ray will no longer override accelerator visible devices:FutureWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bear Ray's own warnings in the tests of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for warning in RAY_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Yield the pool, its store and a client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        with connected_cluster() as cluster, opened(cluster, tmp_path_factory.mktemp("pool")) as scene:
            yield scene
