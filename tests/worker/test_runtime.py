"""A worker as a whole: what it refuses at start, keeps between starts, and lets go of at the end."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from kvstore.core.errors import ClosedError, KVError
from kvworker.engine.sampling import Sampling
from kvworker.serve import runtime
from kvworker.serve.runtime import Worker
from kvworker.settings import WorkerSettings
from tests.engine.prompts import Tiny
from tests.worker.conftest import MakeLab
from tests.worker.lab import TEXTS, Lab
from tests.worker.waiting import until


@pytest.mark.parametrize(
    "settings", [{"codec": "magic"}, {"policy": "magic"}, {"policy": "first_k:k=0"}, {"planner": "magic"}, {"planner": ""}]
)
def test_a_default_that_does_not_exist_is_refused_at_start(tiny: Tiny, settings: dict[str, str]) -> None:
    """And not with every question."""
    with pytest.raises(KVError):
        Worker(tiny.engine, WorkerSettings(**settings))  # type: ignore[arg-type]


def test_passages_and_costs_are_there_again_after_a_restart(make_lab: MakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured and nothing computed again."""
    first = make_lab(tmp_path / "data")
    names = first.names()
    first.worker.close()
    monkeypatch.setattr(runtime, "calibrate", None)
    second = make_lab(tmp_path / "data")
    assert not any(done.computed for done in second.ingest())
    assert second.ask(["a.txt#1"]).token_ids == second.expected(names[1:2])


def test_each_codec_has_measured_costs_of_its_own(make_lab: MakeLab, tmp_path: Path) -> None:
    """Decoding differs."""
    for codec in ("raw", "int8"):
        make_lab(tmp_path / "data", codec=codec)
    assert len(list((tmp_path / "data").rglob("costs-cpu-*.json"))) == 2


def test_the_files_of_a_worker_are_its_owners_only(make_lab: MakeLab, tmp_path: Path) -> None:
    """They hold what documents say."""
    make_lab(tmp_path / "data").names()
    folder = next((tmp_path / "data" / "worker").iterdir())
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("codec", ["raw", "lossless", "int8", "kivi4", "kivi2"])
def test_every_codec_carries_an_answer_to_its_end(make_lab: MakeLab, codec: str) -> None:
    """`all` is exact under a lossy codec too; the report names the codec."""
    lab = make_lab(codec=codec)
    names = lab.names()[::-1]
    assert lab.ask(names).token_ids == lab.expected(names)
    report = lab.ask(names, policy="none").report
    named = "lossless" if codec in ("raw", "lossless") else codec[:4]
    assert report.quality.startswith(f"codec {named}")
    assert {row.action for row in report.passages} == {"load"}


def test_the_oldest_reports_are_forgotten(lab: Lab) -> None:
    """Memory is bounded."""
    names = lab.names(texts=TEXTS[:1])
    first = lab.ask(names).report
    for _ in range(256):
        lab.ask(names, planner="always_compute", sampling=Sampling(max_new_tokens=1))
    with pytest.raises(KVError, match="256"):
        lab.worker.explain("alice", first.request_id)


def test_a_closed_worker_answers_with_an_error_of_ours(lab: Lab) -> None:
    """Not with one of a library, and not never."""
    names = lab.names()
    lab.worker.close()
    with pytest.raises(ClosedError):
        lab.ask(names)
    with pytest.raises(ClosedError):
        lab.ingest("b.txt", ["New."])


def test_closing_twice_is_closing_once(lab: Lab) -> None:
    """Whoever cleans up need not remember."""
    lab.worker.close()
    lab.worker.close()


def test_workers_leave_no_threads_and_files_behind(make_lab: MakeLab, tmp_path: Path) -> None:
    """Ten of them, each used."""

    def use(n: int) -> None:
        lab = make_lab(tmp_path / str(n))
        lab.ask(lab.names(), policy="none")
        lab.worker.close()

    use(0)
    until(lambda: not worker_threads())
    before = len(os.listdir("/proc/self/fd"))
    for n in range(1, 11):
        use(n)
    until(lambda: not worker_threads())
    assert len(os.listdir("/proc/self/fd")) <= before


def worker_threads() -> list[str]:
    """Return the names of live threads of workers."""
    return [t.name for t in threading.enumerate() if t.name.startswith(("push", "load", "restore"))]
