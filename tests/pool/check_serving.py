"""A pool under a real Ray Serve, as KubeRay's RayService runs it; `make soak` looks at it, for it takes a while."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.core.tokens import read_tokens
from tests.architecture.source import ROOT

CONFIG = """
data_dir = "{folder}"
server = {{address = "127.0.0.1:0", metrics_address = "", drain_s = 5.0}}
store = {{address = "{store}"}}
model = {{device = "cpu", threads = 1}}
ray = {{workers = 1, cpus = 0, host = "127.0.0.1"}}
"""


@pytest.mark.timeout(300)
def test_serve_starts_the_pool_and_its_front_answers_beside_it(tmp_path: Path) -> None:
    """By the application's import path; behind Serve's shutdown nobody listens any more."""
    from tests.pool.scene import served_store

    with served_store(tmp_path) as store:
        config = tmp_path / "worker.toml"
        config.write_text(CONFIG.format(folder=tmp_path, store=store))
        token = read_tokens(tmp_path / "tokens")[0].token
        command = [sys.executable, "-m", "tests.pool.served", str(config), token]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told["tokens"]) == 4
    host, _, port = told["address"].rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)
