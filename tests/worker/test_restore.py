"""Passages that the store lost are stored again behind the answers, and a failing store is only logged."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from kvstore.core.api import StoreAPI
from kvstore.core.errors import TierUnavailableError
from kvworker.ingest.ingest import Ingestor
from kvworker.ingest.passages import Passage
from kvworker.ingest.restore import Restorer
from tests.worker.lab import Lab, Refusing, Wrapped
from tests.worker.waiting import until


def passage(n: int) -> Passage:
    """Return a passage read alone."""
    return Passage(n.to_bytes(32, "big"), None, (1,), "a.txt", n, "")


@dataclass
class SlowIngestor:
    """Takes its time to restore, and may fail."""

    gate: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    restored: list[tuple[str, int]] = field(default_factory=list)

    def restore(self, tenant: str, store: StoreAPI, passage: Passage) -> None:
        """Wait for the gate."""
        assert self.gate.wait(30)
        if self.error:
            raise self.error
        self.restored.append((tenant, passage.index))


@pytest.fixture
def ingestor() -> SlowIngestor:
    """Return a restorer's worker."""
    return SlowIngestor()


@pytest.fixture
def restorer(ingestor: SlowIngestor) -> Iterator[Restorer]:
    """Yield a restorer for at most 3 passages."""
    restorer = Restorer(ingestor, most=3)  # type: ignore[arg-type]
    yield restorer
    ingestor.gate.set()
    restorer.close()


STORE: StoreAPI = Wrapped(None)  # type: ignore[arg-type]


def test_at_most_so_many_passages_wait(restorer: Restorer, ingestor: SlowIngestor) -> None:
    """More are left for the next time that they are missed."""
    assert [restorer.ask("alice", STORE, passage(i)) for i in range(5)] == [True, True, True, False, False]
    ingestor.gate.set()
    until(lambda: len(ingestor.restored) == 3)
    until(lambda: restorer.ask("alice", STORE, passage(4)))


def test_a_passage_waits_once_per_tenant(restorer: Restorer, ingestor: SlowIngestor) -> None:
    """Popular passages are missed by many requests at once."""
    asked = [restorer.ask(tenant, STORE, passage(1)) for tenant in ("alice", "alice", "bob")]
    assert asked == [True, False, True]
    ingestor.gate.set()
    until(lambda: sorted(ingestor.restored) == [("alice", 1), ("bob", 1)])


@pytest.mark.parametrize("error", [TierUnavailableError("the store is down"), ZeroDivisionError("a bug")])
def test_what_fails_is_logged_and_may_be_asked_for_again(
    restorer: Restorer, ingestor: SlowIngestor, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """Whatever it is; nobody waits for a restore, so nobody else would see it."""
    ingestor.error = error
    ingestor.gate.set()
    with caplog.at_level(logging.WARNING):
        assert restorer.ask("alice", STORE, passage(1))
        until(lambda: "was not stored again" in caplog.text)
    until(lambda: restorer.ask("alice", STORE, passage(1)))


def test_a_closed_restorer_finishes_what_it_is_at_and_takes_nothing_new(restorer: Restorer, ingestor: SlowIngestor) -> None:
    """Without raising: the answer that asks is complete already."""
    restorer.ask("alice", STORE, passage(1))
    ingestor.gate.set()
    restorer.close()
    assert not restorer.ask("alice", STORE, passage(2))
    assert ("alice", 2) not in ingestor.restored


def test_a_put_that_fails_in_a_restore_is_logged(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """The put runs on another thread than the restore."""
    names = lab.names()
    lab.caller.store.delete(lab.keys(names))
    with caplog.at_level(logging.WARNING):
        lab.ask(names, Refusing(lab.caller.store, TierUnavailableError("the store is full")))
        until(lambda: caplog.text.count("the store is full") == len(names))


def test_a_restored_passage_is_stored_under_its_source(lab: Lab) -> None:
    """So that taking the source back takes back the restored chunk too."""
    names = lab.names()
    lab.caller.store.delete(lab.keys(names))
    store = Wrapped(lab.caller.store)
    lab.ask(names, store)
    until(lambda: len(store.puts) == len(names))
    assert {note.source for note in store.puts} == {"a.txt"}
    assert all(note.recompute_s > 0 for note in store.puts)


def test_the_ingestor_restores_what_it_stored(lab: Lab) -> None:
    """When it returns, the chunk is there."""
    ingestor: Ingestor = lab.worker._ingestor
    names = lab.names()
    keys = lab.keys(names)
    lab.caller.store.delete(keys)
    ingestor.restore("alice", lab.caller.store, lab.worker.catalog.find("alice", names[1]))
    assert [hit.status.value for hit in lab.caller.store.lookup(keys)] == ["absent", "ready", "absent"]
