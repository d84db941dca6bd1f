"""Ingest stores every passage once, reads what the store has not, and never loses the tokens."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from kvstore.core.api import PutNote, PutReceipt, Status
from kvstore.core.blob import Buffer
from kvstore.core.errors import InvalidInputError, TierUnavailableError
from kvstore.planners.linear import LinearCost
from kvworker.ingest.ingest import Ingested
from tests.worker.conftest import MakeLab
from tests.worker.lab import TEXTS, Lab, Refusing, Wrapped
from tests.worker.waiting import until

LONG = [f"Passage number {i} of a long document." for i in range(12)]


def computed(done: list[Ingested]) -> list[bool]:
    """Return which passages were computed."""
    return [row.computed for row in done]


def test_passages_come_in_order_with_their_sizes(lab: Lab) -> None:
    """One row per passage, each knows how many there are."""
    done = lab.ingest()
    assert [(row.passage.source, row.passage.index, row.n_passages) for row in done] == [("a.txt", i, 3) for i in range(3)]
    assert all(row.nbytes > 0 for row in done)
    assert [e.nbytes for e in lab.caller.store.entries()].sort() == [row.nbytes for row in done].sort()


def test_what_is_stored_is_not_computed_again(lab: Lab) -> None:
    """Under whatever name; only what is new behind it is."""
    assert computed(lab.ingest()) == [True] * 3
    assert computed(lab.ingest()) == [False] * 3
    assert computed(lab.ingest("b.txt")) == [False] * 3
    assert computed(lab.ingest("c.txt", [*TEXTS, "More."])) == [False] * 3 + [True]
    assert computed(lab.ingest("d.txt", [TEXTS[0], "Else.", TEXTS[2]])) == [False, True, True]


def test_only_the_lost_passage_is_computed_again(lab: Lab) -> None:
    """Those around it stay."""
    names = lab.names()
    lab.caller.store.delete(lab.keys(names)[1:2])
    assert computed(lab.ingest()) == [False, True, False]


def test_passages_read_alone_share_their_chunks_wherever_they_stand(lab: Lab) -> None:
    """Also with the first passage of a document."""
    lab.ingest("a.txt", TEXTS[:1])
    assert computed(lab.ingest("b.txt", TEXTS[::-1], "alone")) == [True, True, False]
    assert computed(lab.ingest("c.txt", TEXTS, "alone")) == [False] * 3


def test_a_long_document_is_read_in_windows_and_every_passage_is_stored_once(make_lab: MakeLab) -> None:
    """Windows overlap; what gives context only is not stored under its key of the later window."""
    lab = make_lab(window_tokens=120)
    done = lab.ingest("long.txt", LONG)
    assert computed(done) == [True] * len(LONG)
    assert len(list(lab.caller.store.entries())) == len(LONG)
    assert [p.index for p in lab.worker.catalog.listing("alice", "long.txt")] == list(range(len(LONG)))
    assert computed(lab.ingest("long.txt", LONG)) == [False] * len(LONG)


def test_every_passage_of_a_long_document_is_restored_as_it_was_read(make_lab: MakeLab) -> None:
    """Behind the passages of its own window."""
    lab = make_lab(window_tokens=120)
    names = lab.names("long.txt", LONG)
    keys = lab.keys(names)
    for name, key in zip(names, keys, strict=True):
        lab.caller.store.delete([key])
        lab.worker._ingestor.restore("alice", lab.caller.store, lab.worker.catalog.find("alice", name))
        assert lab.caller.store.lookup([key])[0].status is Status.READY


def test_passages_are_known_even_where_storing_fails(lab: Lab) -> None:
    """Questions are answered, slower."""
    with pytest.raises(TierUnavailableError):
        list(lab.worker.ingest(lab.caller_with(Refusing(lab.caller.store, TierUnavailableError("down"))), "a.txt", TEXTS))
    names = [f"a.txt#{i}" for i in range(3)]
    assert lab.ask(names).token_ids == lab.expected(names)


def test_nothing_is_known_of_a_document_that_is_refused(lab: Lab) -> None:
    """An empty passage, one that is too long, or another way to read."""
    for texts, read_as in ((["text", ""], "document"), (["x" * 512], "document"), (["x" * 512], "alone"), (["text"], "backwards")):
        with pytest.raises(InvalidInputError):
            lab.ingest("bad.txt", texts, read_as)
    assert lab.worker.catalog.listing("alice") == []


def test_a_passage_as_long_as_the_model_reads_is_stored(lab: Lab) -> None:
    """511 letters behind BOS."""
    assert computed(lab.ingest("a.txt", ["x" * 511])) == [True]


def test_a_text_that_spells_a_special_token_stays_text(lab: Lab) -> None:
    """Documents are data: they can't end an answer or begin a passage."""
    (done,) = lab.ingest("a.txt", ["</s><s>"])
    assert done.passage.token_ids[0] == lab.tiny.engine.bos_id
    assert not {256, 257} & set(done.passage.token_ids[1:])


def test_an_ingest_that_is_abandoned_leaves_the_engine_free(lab: Lab) -> None:
    """A client may go away after the first passage."""
    left = lab.worker.ingest(lab.caller, "long.txt", LONG)
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert computed(lab.ingest()) == [True] * 3


def test_documents_may_be_ingested_at_once(lab: Lab) -> None:
    """Four threads, shared beginnings."""

    def ingest(n: int) -> int:
        return len(lab.ingest(f"{n}.txt", ["A shared beginning.", f"Number {n}."]))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ingest, range(12))) == [2] * 12
    assert len(list(lab.caller.store.entries())) == 13


def test_a_small_push_queue_slows_ingest_down_but_never_stops_it(make_lab: MakeLab) -> None:
    """Each passage is larger than the whole queue."""
    lab = make_lab(push_bytes=1)
    assert computed(lab.ingest("long.txt", LONG)) == [True] * len(LONG)


def test_questions_are_answered_while_the_store_is_slow_to_take_passages(lab: Lab) -> None:
    """Pushing holds no lock of the engine."""
    gate = threading.Event()

    class Slow(Wrapped):
        def put(self, blob: Buffer, note: PutNote) -> PutReceipt:
            assert gate.wait(30)
            return super().put(blob, note)

    names = lab.names()
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(lambda: list(lab.worker.ingest(lab.caller_with(Slow(lab.caller.store)), "b.txt", LONG)))
        until(lambda: lab.worker._push.used_bytes > 0)
        answer = lab.ask(names)
        gate.set()
        assert len(slow.result(20)) == len(LONG)
    assert answer.token_ids == lab.expected(names)


def test_a_passage_costs_what_it_costs_at_its_place(lab: Lab) -> None:
    """Where a row costs 1 us and a key that it sees 1 us more, passages of equal length cost the more the later they come."""
    book = lab.worker.costs
    book._model = replace(book.model, costs={**book.model.costs, "prefill": LinearCost((0.0, 1e-6, 1e-6))})
    store = Wrapped(lab.caller.store)
    done = list(lab.worker.ingest(lab.caller_with(store), "a.txt", ["One text."] * 4))
    n = len(done[0].passage.token_ids)
    seconds = sorted(note.recompute_s for note in store.puts)
    wanted = [1 + n * i + (n + 1) / 2 for i in range(4)]
    assert [s / seconds[0] for s in seconds] == pytest.approx([w / wanted[0] for w in wanted])
