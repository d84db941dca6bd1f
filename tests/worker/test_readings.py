"""A passage may be stored read in its document and read alone; a question takes the best that is stored, or the one it asks for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvstore.core.api import Hit, Scope, Status
from kvstore.core.errors import CapacityError, InvalidInputError, NotFoundError
from kvstore.core.key import ChunkKey
from kvworker.serve.runtime import Caller
from tests.worker.conftest import MakeLab
from tests.worker.lab import TEXTS, Answer, Lab, Wrapped
from tests.worker.waiting import until

PLACES = [f"a.txt#{i}" for i in range(3)]
SCATTERED = ["a.txt#2", "a.txt#1"]  # no exact prefix, and none is the first of its document


class CountingLookups(Wrapped):
    """Counts lookups and the keys in them."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab.caller.store)
        self.lookups: list[int] = []

    def lookup(self, keys: Sequence[ChunkKey], lease_s: float = 0.0, timeout_s: float | None = None) -> list[Hit]:
        """Count and pass on."""
        self.lookups.append(len(keys))
        return super().lookup(keys, lease_s, timeout_s)


def readings(answer: Answer) -> list[str]:
    """Return how each passage had been read."""
    return [row.read_as for row in answer.report.passages]


def keys_of(lab: Lab, names: Sequence[str], read_as: str) -> list[ChunkKey]:
    """Return the keys of passages in one reading."""
    return [key for _, key in lab.worker.resolve(lab.caller, names, read_as)]


def is_stored(lab: Lab, names: Sequence[str], read_as: str) -> list[bool]:
    """Tell which passages are stored in one reading."""
    return [hit.status is Status.READY for hit in lab.caller.store.lookup(keys_of(lab, names, read_as))]


@pytest.mark.parametrize(("order"), [("document", "alone"), ("alone", "document"), ("both",)], ids=str)
def test_both_readings_are_stored_by_one_ingest_or_by_two(lab: Lab, order: tuple[str, ...]) -> None:
    """The second does not displace the first."""
    for read_as in order:
        lab.ingest("a.txt", TEXTS, read_as)
    assert len(list(lab.caller.store.entries())) == 5  # the first passage of a document is one chunk in both readings
    assert is_stored(lab, PLACES, "document") == is_stored(lab, PLACES, "alone") == [True] * 3
    assert readings(lab.ask(SCATTERED, policy="none")) == ["document", "document"]
    assert readings(lab.ask(SCATTERED, policy="none", read_as="alone")) == ["alone", "alone"]


def test_an_ingest_of_both_readings_tells_of_each_passage_once(lab: Lab) -> None:
    """With the bytes of both chunks and the tokens read for both."""
    one, both = lab.ingest("a.txt", TEXTS), lab.ingest("b.txt", [f"{text} Yes." for text in TEXTS], "both")
    assert [row.passage.index for row in both] == [0, 1, 2]
    assert [row.passage.content for row in both] == [p.content for p in lab.worker.catalog.listing("alice", "b.txt")]
    lengths = [len(row.passage.token_ids) for row in both]
    assert [row.tokens_read for row in both] == [lengths[0], 2 * lengths[1], 2 * lengths[2]]
    assert [round(b.nbytes / a.nbytes) for a, b in zip(one, both, strict=True)] == [1, 2, 2]


def test_a_text_that_comes_twice_in_a_document_is_read_alone_once(lab: Lab) -> None:
    """One text, one chunk."""
    done = lab.ingest("a.txt", [TEXTS[0], TEXTS[1], TEXTS[1]], "alone")
    assert [row.computed for row in done] == [True, True, False]
    first, second = (len(row.passage.token_ids) for row in done[:2])
    assert [row.tokens_read for row in done] == [first, second, 0]
    assert done[1].nbytes == done[2].nbytes > 0


def test_both_readings_are_found_in_one_lookup(lab: Lab) -> None:
    """A round trip per reading would be one too many."""
    lab.ingest("a.txt", TEXTS, "both")
    store = CountingLookups(lab)
    lab.ask(SCATTERED, store, policy="none")
    assert store.lookups == [4]


def test_what_was_ingested_one_way_only_is_looked_up_so_only(lab: Lab) -> None:
    """Nobody asked for the other."""
    lab.ingest("a.txt", TEXTS)
    store = CountingLookups(lab)
    lab.ask(SCATTERED, store, policy="none")
    assert store.lookups == [2]


def test_the_better_reading_is_preferred_also_where_the_other_is_quicker_to_load(lab: Lab) -> None:
    """A decoded copy on the device of the passage read alone is no reason to give up what the document told."""
    lab.ingest("a.txt", TEXTS, "both")
    lab.ask(SCATTERED, policy="none", read_as="alone")
    for planner in ("always_load", "min_cost"):
        answer = lab.ask(SCATTERED, policy="none", planner=planner)
        assert "alone" not in readings(answer)


def test_the_other_reading_is_used_while_the_better_one_is_lost(lab: Lab) -> None:
    """And the better one is stored again behind the answer."""
    lab.ingest("a.txt", TEXTS, "both")
    lab.caller.store.delete(keys_of(lab, SCATTERED[:1], "document"))
    answer = lab.ask(SCATTERED, policy="none")
    assert readings(answer) == ["alone", "document"]
    assert [row.passage.id for row in answer.report.passages] == [key.content.hex() for key in keys_of(lab, SCATTERED, "document")]
    until(lambda: all(is_stored(lab, SCATTERED, "document")))


def test_a_lost_reading_that_is_worse_than_a_stored_one_is_not_missed(lab: Lab) -> None:
    """Storing it again after every question would push out what is used."""
    lab.ingest("a.txt", TEXTS, "both")
    lab.caller.store.delete(keys_of(lab, SCATTERED, "alone"))
    lab.ask(SCATTERED, policy="none")
    lab.worker._restorer.close()
    assert is_stored(lab, SCATTERED, "alone") == [False, False]


def test_a_reading_alone_that_nobody_ingested_is_computed_and_then_stored(lab: Lab) -> None:
    """Its key follows from the tokens."""
    lab.ingest("a.txt", TEXTS)
    answer = lab.ask(SCATTERED, policy="none", read_as="alone")
    assert {row.action for row in answer.report.passages} == {"compute"}
    assert readings(answer) == ["", ""]
    assert answer.token_ids == lab.expected(SCATTERED)
    until(lambda: all(is_stored(lab, SCATTERED, "alone")))
    assert readings(lab.ask(SCATTERED, policy="none", read_as="alone")) == ["alone", "alone"]


def test_a_document_that_nobody_ingested_as_such_is_computed(lab: Lab) -> None:
    """A reading in the document is never made up, and what was read alone does not stand in for it."""
    lab.ingest("a.txt", TEXTS, "alone")
    answer = lab.ask(SCATTERED, policy="none", read_as="document")
    assert {row.action for row in answer.report.passages} == {"compute"}
    assert answer.token_ids == lab.expected(SCATTERED)
    assert readings(lab.ask(SCATTERED, policy="none")) == ["alone", "alone"]
    with pytest.raises(NotFoundError, match="never read in its document"):
        lab.worker.resolve(lab.caller, SCATTERED, "document")


@pytest.mark.parametrize("read_as", ["", "both", "backwards"])
def test_a_question_refuses_an_unknown_way_to_read(lab: Lab, read_as: str) -> None:
    """With the known ones."""
    lab.ingest("a.txt", TEXTS)
    with pytest.raises(InvalidInputError, match="auto, document, alone"):
        lab.ask(PLACES, read_as=read_as)


@pytest.mark.parametrize("policy", ["none", "first_k:k=2"])
def test_a_policy_goes_on_top_of_either_reading(lab: Lab, policy: str) -> None:
    """A passage read in its document needs no repair, but may be repaired all the same."""
    lab.ingest("a.txt", TEXTS, "both")
    n_patched = 0 if policy == "none" else 2
    for read_as in ("document", "alone"):
        row = lab.ask(SCATTERED, policy=policy, read_as=read_as).report.passages[1]
        assert (row.read_as, row.rows_recomputed) == (read_as, n_patched)


@pytest.mark.parametrize("read_as", ["auto", "document"])
@pytest.mark.parametrize("n_passages", [1, 2, 3])
def test_the_beginning_of_a_document_is_an_exact_prefix(lab: Lab, read_as: str, n_passages: int) -> None:
    """Document chunks in their own order are what prefix caching stores: nothing is repaired, and the answer is that of a full prefill."""
    lab.ingest("a.txt", TEXTS, "both")
    answer = lab.ask(PLACES[:n_passages], policy="first_k:k=2", read_as=read_as)
    assert answer.token_ids == lab.expected(PLACES[:n_passages])
    assert answer.report.tokens_recomputed == len(lab.tiny.engine.encode(" What?"))
    assert answer.report.quality == "exact"


def test_another_tenants_readings_are_out_of_reach(lab: Lab) -> None:
    """By name, by id and by key, in both readings."""
    lab.ingest("a.txt", TEXTS, "both")
    bob = Lab(lab.tiny, lab.worker, lab.service, Caller("bob", lab.service.bind("bob")))
    for read_as in ("document", "alone"):
        keys = keys_of(lab, PLACES, read_as)
        assert {hit.status for hit in bob.caller.store.lookup(keys)} == {Status.ABSENT}
        for name in (PLACES[1], keys[1].content.hex()):
            with pytest.raises(NotFoundError):
                bob.ask([name], read_as=read_as)


def test_invalidating_a_document_takes_every_chunk_of_it(lab: Lab) -> None:
    """In both readings; a document is one unit of access."""
    lab.ingest("a.txt", TEXTS, "both")
    lab.ingest("b.txt", ["Another document."])
    lab.caller.store.invalidate(Scope("source", "a.txt"))
    assert [entry.source for entry in lab.caller.store.entries()] == ["b.txt"]


def test_the_same_text_in_two_documents_survives_either_of_them(lab: Lab) -> None:
    """Read alone it is one chunk under the first document's name. Taking that back costs the other one computation, then it is its own."""
    for source in ("a.txt", "b.txt"):
        lab.ingest(source, TEXTS, "alone")
    assert {entry.source for entry in lab.caller.store.entries()} == {"a.txt"}
    lab.caller.store.invalidate(Scope("source", "a.txt"))
    assert lab.ask(["b.txt#1"], policy="none").token_ids == lab.expected(["b.txt#1"])
    until(lambda: is_stored(lab, ["b.txt#1"], "alone") == [True])
    assert {entry.source for entry in lab.caller.store.entries()} == {"b.txt"}
    lab.caller.store.invalidate(Scope("source", "b.txt"))
    assert list(lab.caller.store.entries()) == []


def test_a_forgotten_document_is_gone_and_what_it_shared_stays_the_others(lab: Lab) -> None:
    """Chunks, tokens and decoded copies; the other document answers as before."""
    lab.ingest("a.txt", TEXTS, "both")
    lab.ingest("b.txt", [*TEXTS[:2], "Something else."], "both")
    shared = ["b.txt#1", "b.txt#2"]
    lab.ask(["a.txt#2"], policy="none")
    gone = keys_of(lab, ["a.txt#2"], "document")[0]
    assert lab.worker.forget(lab.caller, "a.txt") == 5
    assert lab.worker.device_tier.nbytes(("alice", gone)) == 0
    assert {entry.source for entry in lab.caller.store.entries()} == {"b.txt"}
    with pytest.raises(NotFoundError):
        lab.ask(["a.txt#2"])
    assert lab.ask(shared, policy="all").token_ids == lab.expected(shared)
    until(lambda: is_stored(lab, shared, "document") == [True, True])
    assert lab.worker.forget(lab.caller, "a.txt") == 0


def test_a_full_catalog_refuses_a_document_before_anything_is_read(make_lab: MakeLab) -> None:
    """The bound is the operator's."""
    lab = make_lab(catalog_bytes=4 * 100)
    lab.ingest("a.txt", TEXTS)
    with pytest.raises(CapacityError, match=r"worker\.catalog_bytes"):
        lab.ingest("b.txt", ["Quite another text, which is long."])
    assert {entry.source for entry in lab.caller.store.entries()} == {"a.txt"}
