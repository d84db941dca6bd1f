"""Recorded traffic: enough to simulate it, nothing that says what was read."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from kvclient.records import Passage, PassageReport, Report
from kvstore.core.errors import ConfigError
from kvstore.simulate.trace import read_trace
from kvworker.serve.recorder import TraceRecorder
from tests.worker.conftest import MakeLab

MIB = 1 << 20


def report(*passages: str, tier: str = "memory") -> Report:
    """Return a report about passages of ten tokens, two rows of each computed again, and a question of three."""
    rows = tuple(PassageReport(Passage(id_, "secret.txt", 0, 10, "secret"), "load", tier, "raw", 640, 0.01, "why", 2) for id_ in passages)
    return Report("r", rows, "min_cost", "none", {}, 0.25, 0.2, 8, 2 * len(rows) + 3, 1, "exact")


def recorder(path: Path, secret: bytes = b"s" * 32, capacity_bytes: int = MIB) -> TraceRecorder:
    """Return a recorder with a clock that stands still."""
    return TraceRecorder(path, secret, capacity_bytes, lambda: 100.0)


def test_a_workers_requests_can_be_simulated(make_lab: MakeLab, tmp_path: Path) -> None:
    """One line per answer: the same passage has the same key, also after a restart; the question's length is what was not of a passage."""
    file = tmp_path / "trace.jsonl"
    for _ in range(2):
        lab = make_lab(tmp_path / "data", trace_file=str(file))
        names = lab.names()
        lab.ask(names[:2], policy="none")
        lab.ask(names[1:], planner="always_compute")
        lab.worker.close()
    requests = read_trace(file)
    keys = [[asked.key for asked in request.passages] for request in requests]
    assert keys[:2] == keys[2:]
    assert keys[0][1] == keys[1][0]
    question = len(lab.tiny.engine.encode(" What?"))
    assert {request.question_tokens for request in requests} == {question}
    assert requests[0].passages[0].nbytes > 0
    assert requests[1].passages[0].nbytes == 0


def test_nothing_of_what_was_read_is_in_the_file(tmp_path: Path) -> None:
    """No id, no name, no text, no tenant; only its owner may read it."""
    file = tmp_path / "trace.jsonl"
    recorder(file).record("alice", report("ab" * 32))
    text = file.read_text()
    assert not [word for word in ("ab" * 8, "secret", "alice", "why") if word in text]
    assert file.stat().st_mode & 0o077 == 0
    assert read_trace(file)[0].passages[0][1:] == (10, 640)


def test_keys_differ_by_tenant_and_by_secret(tmp_path: Path) -> None:
    """Two tenants' chunks are two chunks in the store; and who lacks the secret can't check a guess."""
    for name, secret in (("a", b"1" * 32), ("b", b"2" * 32)):
        writer = recorder(tmp_path / name, secret)
        for tenant in ("alice", "bob"):
            writer.record(tenant, report("ab" * 32))
    keys = [request.passages[0].key for name in "ab" for request in read_trace(tmp_path / name)]
    assert len(set(keys)) == 4


def test_the_size_of_a_copy_on_the_device_is_not_recorded(tmp_path: Path) -> None:
    """The store keeps it encoded."""
    recorder(tmp_path / "t").record("alice", report("ab" * 32, tier="device"))
    assert read_trace(tmp_path / "t")[0].passages[0].nbytes == 0


def test_a_line_that_was_cut_off_is_dropped_and_the_file_goes_on(tmp_path: Path) -> None:
    """The machine went down while it was written."""
    file = tmp_path / "t"
    recorder(file).record("alice", report("ab" * 32))
    with file.open("a") as out:
        out.write('{"at_s":1')
    recorder(file).record("alice", report("cd" * 32))
    assert len(read_trace(file)) == 2


@pytest.mark.parametrize("text", ["important\n", '{"larder_trace": 2}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    """A typing error must not cost a file."""
    (tmp_path / "t").write_text(text)
    with pytest.raises(ConfigError, match="is not a trace"):
        recorder(tmp_path / "t")
    assert (tmp_path / "t").read_text() == text


def test_a_file_that_cannot_be_opened_is_said_at_start(tmp_path: Path) -> None:
    """By its setting."""
    with pytest.raises(ConfigError, match=r"worker\.trace_file .*No such file"):
        recorder(tmp_path / "no folder" / "t")


def test_a_full_file_ends_the_recording_and_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line in the log, and the file stays a trace."""
    writer = recorder(tmp_path / "t", capacity_bytes=300)
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            writer.record("alice", report("ab" * 32))
    assert 1 <= len(read_trace(tmp_path / "t")) < 10
    assert [record.message.count("raise worker.trace_bytes") for record in caplog.records] == [1]
    writer.close()


@pytest.mark.parametrize("fails", [True, False])
def test_a_full_disk_ends_the_recording_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    """Whether the system takes half a line or none; the file stays a trace."""
    writer = recorder(tmp_path / "t")
    writer.record("alice", report("ab" * 32))
    pwrite = os.pwrite

    def full(file: int, data: bytes, at: int) -> int:
        if fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, data[:7], at)

    monkeypatch.setattr(os, "pwrite", full)
    writer.record("alice", report("ab" * 32))
    writer.record("alice", report("ab" * 32))
    assert len(read_trace(tmp_path / "t")) == 1
    assert len(caplog.records) == 1


def test_nothing_is_recorded_unless_a_file_is_named(make_lab: MakeLab, tmp_path: Path) -> None:
    """Off by default."""
    lab = make_lab(tmp_path / "data")
    lab.ask(lab.names())
    assert not list((tmp_path / "data").rglob("*trace*"))
