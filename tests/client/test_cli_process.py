"""The command as a process: signals and pipes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.client.fake_server import FakeServer

LARDER = [sys.executable, "-m", "kvclient.cli.main"]


def test_ctrl_c_ends_a_stalled_question_with_130_and_without_a_traceback(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a server is when people lose patience."""
    server.stalls.add("Ask")
    monkeypatch.setenv("LARDER_ADDRESS", server.address)
    command = [*LARDER, "ask", "What?", "--context", "notes.txt#0", "--json"]
    # A suite that runs in the background of a shell ignores Ctrl-C, and its children would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with started as process:
        deadline = time.monotonic() + 20
        while not server.calls["Ask"] and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_error(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`larder ls | head -1` is silent."""
    for index in range(3000):
        server.add_passage("notes.txt", index, " ".join("x" * (int(digit) + 1) for digit in f"{index:05d}"))
    monkeypatch.setenv("LARDER_ADDRESS", server.address)
    command = [*LARDER, "ls", "passages", "--json", "--limit", "5000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (141, b"")
