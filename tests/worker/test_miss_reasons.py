"""A stranger finds out why a passage was missed, for every reason there is: by `larder explain` of the request, or on the console."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvstore.core.api import Scope
from kvstore.core.errors import TierUnavailableError
from kvstore.core.reasons import REASONS, meaning_of
from kvstore.server.observe.store_source import StoreSource
from kvstore.server.service import StoreService
from kvstore.store.breaker import BreakerTier
from kvstore.store.epochs import Epochs
from kvstore.store.memory import MemoryTier
from kvstore.store.results import StoreSettings
from kvstore.store.tier import TierInfo
from kvstore.store.tiered import TieredStore
from kvworker.serve.runtime import Caller
from tests.store.faulty import FaultyTier
from tests.store.stores import corrupt
from tests.worker.conftest import MakeLab
from tests.worker.lab import TEXTS, Lab

REMOTE = TierInfo("redis", 0, is_remote=True)
CAPACITY = 1 << 20


@dataclass
class Scene:
    """A worker whose store is over a memory tier and, for reasons that need one, a remote one that fails on demand."""

    lab: Lab
    memory: MemoryTier
    remote: FaultyTier
    service: StoreService
    make_lab: MakeLab
    data_dir: Path

    @property
    def caller(self) -> Caller:
        """The tenant alice."""
        return Caller("alice", self.service.bind("alice"))

    def ingest(self, texts: Sequence[str] = TEXTS, source: str = "a.txt", caller: Caller | None = None) -> tuple[str, ...]:
        """Store passages, in memory alone unless the remote tier works."""
        done = list(self.lab.worker.ingest(caller or self.caller, source, texts))
        self.service.store.drain(5.0)
        return tuple(each.passage.content.hex() for each in done)

    def forget_locally(self, names: Sequence[str]) -> None:
        """Have the local tier lose chunks as after a restart, so that only the remote one could have them."""
        for key in self.lab.keys(names):
            place = self.service.bind("alice")._place(key)
            self.service.store.delete(place)
            self.service.store._index.admit(place)


@pytest.fixture
def scene(make_lab: MakeLab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """Open it."""
    needs_remote = request.node.callspec.params["reason"] in ("timeout", "breaker", "unavailable")
    memory, remote = MemoryTier(CAPACITY), FaultyTier(MemoryTier(1 << 20), REMOTE)
    tiers = [memory, BreakerTier(remote, cool_down_s=60.0)] if needs_remote else [memory]
    store = TieredStore(tiers, StoreSettings(eviction="lru", remote_timeout_s=0.05))
    service = StoreService(store, Epochs(), bytes(32), 1 << 20)
    lab = make_lab(tmp_path / "data", restore_passages=0, load_slack_s=1.0)
    yield Scene(lab, memory, remote, service, make_lab, tmp_path / "data")
    remote.gate.set()
    remote.error = None
    service.close(1.0)


def never_stored(scene: Scene) -> tuple[str, ...]:
    """Have the worker know passages that another store has."""
    elsewhere = Caller("alice", scene.lab.caller.store)
    return scene.ingest(caller=elsewhere)


def evicted(scene: Scene) -> tuple[str, ...]:
    """Store so much behind them that they have to make room."""
    names = scene.ingest()
    for i in range(40):
        scene.ingest([f"Document {i} says something else."], f"other-{i}.txt")
    return names


def epoch(scene: Scene) -> tuple[str, ...]:
    """Invalidate their source."""
    names = scene.ingest()
    scene.caller.store.invalidate(Scope("source", "a.txt"))
    return names


def deleted(scene: Scene) -> tuple[str, ...]:
    """Delete them."""
    names = scene.ingest()
    scene.caller.store.delete(scene.lab.keys(names))
    return names


def corrupted(scene: Scene) -> tuple[str, ...]:
    """Flip a bit of each, and have a reader find out."""
    names = scene.ingest()
    for key in scene.lab.keys(names):
        corrupt(scene.memory, scene.service.bind("alice")._place(key))
        assert scene.service.store.scrub(scene.service.bind("alice")._place(key))
    return names


def timeout(scene: Scene) -> tuple[str, ...]:
    """Have the remote tier say nothing."""
    names = scene.ingest()
    scene.forget_locally(names)
    scene.remote.gate.clear()
    return names


def unavailable(scene: Scene) -> tuple[str, ...]:
    """Have the remote tier refuse."""
    names = scene.ingest()
    scene.forget_locally(names)
    scene.remote.error = TierUnavailableError("connection refused")
    return names


def breaker(scene: Scene) -> tuple[str, ...]:
    """Have it refuse, and somebody find out before."""
    names = unavailable(scene)
    scene.caller.store.lookup(scene.lab.keys(names))
    return names


def variant(scene: Scene) -> tuple[str, ...]:
    """Store them in one codec, then have the worker use another."""
    names = scene.ingest()
    scene.lab.worker.close()
    scene.lab = scene.make_lab(scene.data_dir, codec="int8", restore_passages=0, load_slack_s=1.0)
    return names


SCENES: dict[str, Callable[[Scene], tuple[str, ...]]] = {
    "never_stored": never_stored,
    "evicted": evicted,
    "epoch": epoch,
    "deleted": deleted,
    "corrupt": corrupted,
    "timeout": timeout,
    "breaker": breaker,
    "unavailable": unavailable,
    "variant": variant,
}


@pytest.mark.parametrize("reason", SCENES)
def test_explain_says_why_a_request_missed(scene: Scene, reason: str) -> None:
    """In its own words and in a sentence, in the report too; the answer is right all the same."""
    names = SCENES[reason](scene)
    answer = scene.lab.ask(names, store=scene.caller.store, planner="min_cost")
    text = "\n".join(scene.lab.worker.explain("alice", answer.report.request_id).lines)
    assert f"not stored ({reason}: {meaning_of(reason)})" in text
    missed = [row for row in answer.report.passages if row.reason == reason]
    assert missed
    assert all(meaning_of(reason) in row.why for row in missed)


@pytest.mark.parametrize("reason", SCENES)
def test_the_console_says_why_a_chunk_was_missed(scene: Scene, reason: str) -> None:
    """Beside the chunk, the tenant and the request."""
    names = SCENES[reason](scene)
    chunks = {key.content.hex() for key in scene.lab.keys(names)}
    scene.lab.ask(names, store=scene.caller.store, planner="min_cost")
    rows = [row for row in StoreSource(scene.service, 8).panel()["misses"] if row["chunk"] in chunks][: len(names)]
    assert {row["chunk"] for row in rows} == chunks
    assert {row["reason"] for row in rows} == {reason}
    assert all(row["meaning"] == meaning_of(reason) and row["tenant"] == "alice" for row in rows)


@pytest.mark.parametrize("reason", ["tenant"])
def test_the_console_tells_the_operator_what_no_tenant_is_told(scene: Scene, reason: str) -> None:
    """That another tenant has it: bob asks about a text that alice stored."""
    bob = Caller("bob", scene.service.bind("bob"))
    names = scene.ingest()
    bob.store.lookup(scene.lab.keys(names))
    rows = [row for row in StoreSource(scene.service, 8).panel()["misses"] if row["tenant"] == "bob"]
    assert {row["reason"] for row in rows} == {reason}


def test_every_reason_has_its_scene() -> None:
    """A reason that is added needs one too."""
    assert set(SCENES) | {"tenant"} == set(REASONS)
