"""A document that was edited is read again from the edit on, and what it no longer says leaves the store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.core.api import Status
from kvstore.core.errors import TierUnavailableError
from kvworker.ingest.ingest import Ingested
from tests.worker.conftest import MakeLab
from tests.worker.lab import FailingGet, Lab, LosingGet, TamperedParts, Wrapped
from tests.worker.test_failing_stores import cuts_a_byte

TEXTS = [f"Passage number {i} of a document." for i in range(6)]
N = len(TEXTS[0]) + 1  # tokens of each: its letters behind BOS


def edited(at: int, text: str = "Something else stands here now, no?") -> list[str]:
    """Return the document with another passage in one place."""
    return [*TEXTS[:at], text, *TEXTS[at + 1 :]]


def n_read(done: Sequence[Ingested]) -> list[int]:
    """Return the tokens read for each passage."""
    return [row.tokens_read for row in done]


def stored_values(lab: Lab, source: str) -> list[npt.NDArray[np.float32]]:
    """Return the values of every part of a source's raw chunks, passage by passage."""
    found = []
    for name in (f"{source}#{p.index}" for p in lab.worker.catalog.listing("alice", source)):
        reader = lab.caller.store.get(lab.keys([name])[0])
        assert reader is not None
        parts = [np.frombuffer(reader.part(i), dtype=np.float32) for i in range(len(reader.manifest.parts))]
        found.append(np.concatenate(parts))
        reader.close()
    return found


@pytest.mark.parametrize("at", range(len(TEXTS)))
def test_passages_before_an_edit_keep_their_keys_and_only_those_from_it_on_are_read(lab: Lab, at: int) -> None:
    """The keys of a document are chained."""
    before = [row.passage.content for row in lab.ingest("a.txt", TEXTS)]
    done = lab.ingest("a.txt", edited(at))
    after = [row.passage.content for row in done]
    assert after[:at] == before[:at]
    assert not set(after[at:]) & set(before)
    assert n_read(done) == [0] * at + [len(done[at].passage.token_ids)] + [N] * (len(TEXTS) - at - 1)


@pytest.mark.parametrize("at", [1, 3, 5])
def test_what_is_read_on_from_stored_passages_is_what_a_whole_reading_gives(make_lab: MakeLab, at: int) -> None:
    """The same text in a store that never knew another."""
    lab = make_lab()
    lab.ingest("a.txt", TEXTS)
    lab.ingest("a.txt", edited(at))
    found = stored_values(lab, "a.txt")
    lab.worker.forget(lab.caller, "a.txt")
    assert n_read(lab.ingest("b.txt", edited(at)))[0] > 0
    for values, expected in zip(found, stored_values(lab, "b.txt"), strict=True):
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-4)


def test_a_passage_that_is_added_behind_costs_its_own_tokens(lab: Lab) -> None:
    """As a conversation grows."""
    lab.ingest("a.txt", TEXTS[:1])
    for n in range(2, len(TEXTS)):
        assert n_read(lab.ingest("a.txt", TEXTS[:n])) == [0] * (n - 1) + [N]


def test_a_lost_passage_is_read_behind_the_stored_ones(lab: Lab) -> None:
    """Also when it is restored behind an answer."""
    lab.ingest("a.txt", TEXTS)
    expected = stored_values(lab, "a.txt")
    lab.caller.store.delete(lab.keys(["a.txt#3"]))
    assert n_read(lab.ingest("a.txt", TEXTS)) == [0, 0, 0, N, 0, 0]
    np.testing.assert_allclose(stored_values(lab, "a.txt")[3], expected[3], rtol=0, atol=1e-4)


def test_lost_passages_with_a_stored_one_between_them_are_all_that_is_read(lab: Lab) -> None:
    """In one pass."""
    lab.ingest("a.txt", TEXTS)
    expected = stored_values(lab, "a.txt")
    lab.caller.store.delete(lab.keys(["a.txt#1", "a.txt#4"]))
    assert n_read(lab.ingest("a.txt", TEXTS)) == [0, N, 0, 0, N, 0]
    for found, values in zip(stored_values(lab, "a.txt"), expected, strict=True):
        np.testing.assert_allclose(found, values, rtol=0, atol=1e-4)


def test_a_lossy_codec_is_never_read_on(make_lab: MakeLab) -> None:
    """Its errors would go into what is read behind, and from there into the next edit."""
    lab = make_lab(codec="int8")
    lab.ingest("a.txt", TEXTS)
    assert n_read(lab.ingest("a.txt", edited(3))) == [0, 0, 0, 3 * N + len("Something else stands here now, no?") + 1, N, N]


@pytest.mark.parametrize(
    "broken",
    [
        lambda store: FailingGet(store, TierUnavailableError("no answer")),
        lambda store: LosingGet(store),
        lambda store: TamperedParts(store, cuts_a_byte),
    ],
    ids=["fails", "loses", "cuts"],
)
def test_a_store_that_does_not_deliver_costs_a_reading_from_the_start(lab: Lab, broken: type[Wrapped]) -> None:
    """Nothing wrong is stored."""
    lab.ingest("a.txt", TEXTS)
    done = list(lab.worker.ingest(lab.caller_with(broken(lab.caller.store)), "a.txt", edited(3)))
    assert sum(n_read(done)) == sum(len(row.passage.token_ids) for row in done)
    assert lab.ask(["a.txt#3"]).token_ids == lab.expected(["a.txt#3"])


def test_chunks_of_what_a_document_no_longer_says_are_deleted(lab: Lab) -> None:
    """In both readings; what it still says stays."""
    lab.ingest("a.txt", TEXTS, "both")
    lab.ingest("a.txt", edited(4), "both")
    contents = {entry.key.content for entry in lab.caller.store.entries()}
    places = [f"a.txt#{i}" for i in range(len(TEXTS))]
    kept = {key.content for read_as in ("document", "alone") for _, key in lab.worker.resolve(lab.caller, places, read_as)}
    assert contents == kept


def test_a_shortened_document_leaves_nothing_behind(lab: Lab) -> None:
    """Its end is gone."""
    lab.ingest("a.txt", TEXTS)
    assert n_read(lab.ingest("a.txt", TEXTS[:2])) == [0, 0]
    assert len(list(lab.caller.store.entries())) == 2


def test_what_another_document_says_too_is_computed_once_more_and_is_its_own(lab: Lab) -> None:
    """The chunk was stored under the name of the one that was edited."""
    lab.ingest("a.txt", TEXTS)
    lab.ingest("b.txt", TEXTS)
    lab.ingest("a.txt", edited(2))
    assert lab.ask(["b.txt#2"]).token_ids == lab.expected(["b.txt#2"])
    lab.ingest("b.txt", TEXTS)
    assert {e.source for e in lab.caller.store.entries() if e.key in lab.keys([f"b.txt#{i}" for i in range(2, 6)])} == {"b.txt"}


def test_an_id_of_the_text_as_it_was_is_still_answered(lab: Lab) -> None:
    """Somebody may hold it; the answer is computed."""
    old = lab.names("a.txt", TEXTS)
    lab.ingest("a.txt", edited(1))
    answer = lab.ask(old[1:3])
    assert answer.token_ids == lab.expected(old[1:3])
    assert {row.action for row in answer.report.passages} == {"compute"}


@pytest.mark.parametrize("n_tokens", [4 * N - 1, 4 * N, 4 * N + 1])
def test_a_window_of_the_document_and_a_token_more_or_less(make_lab: MakeLab, n_tokens: int) -> None:
    """Four passages that just fit are one window. One token less, and the last is read behind those that fit into half a window."""
    lab = make_lab(window_tokens=n_tokens)
    done = lab.ingest("a.txt", TEXTS[:4])
    parents = {row.passage.content: row.passage.parent for row in done}
    n_windows = 1 if n_tokens >= 4 * N else 2
    assert sum(n_read(done)) == 4 * N + (n_windows - 1) * N * (n_tokens // 2 // N)
    chain = lab.worker.catalog.chain("alice", done[3].passage)
    assert [p.index for p in chain] == ([0, 1, 2, 3] if n_windows == 1 else [2, 3])
    assert (done[3].passage.parent in parents) is (n_windows == 1)


def test_a_passage_remembers_its_window_and_nothing_before_it(make_lab: MakeLab) -> None:
    """Two texts that differ before the window of their last passages share the chunks of these; inside it they do not."""
    lab = make_lab(window_tokens=4 * N)
    first = [row.passage.content for row in lab.ingest("a.txt", TEXTS)]
    windows = [p.index for p in lab.worker.catalog.chain("alice", lab.worker.catalog.find("alice", first[5].hex()))]
    assert windows == [2, 3, 4, 5]  # read behind passages 2 and 3, which take half of the window
    assert [row.passage.content for row in lab.ingest("b.txt", edited(1, TEXTS[1][::-1]))][4:] == first[4:]
    assert not {row.passage.content for row in lab.ingest("c.txt", edited(3, TEXTS[3][::-1]))} & set(first[3:])


def test_an_edit_in_a_long_document_is_read_on_in_its_own_windows(make_lab: MakeLab) -> None:
    """Windows that lie wholly before the edit are not read at all, those behind it whose context did not change neither."""
    lab = make_lab(window_tokens=2 * N)
    lab.ingest("a.txt", TEXTS)
    done = lab.ingest("a.txt", edited(3, TEXTS[3][::-1]))
    assert [row.computed for row in done] == [False, False, False, True, True, False]


def test_a_passage_longer_than_half_a_window_is_read_behind_what_still_fits(make_lab: MakeLab) -> None:
    """Of 40 tokens, a passage of 25 leaves room for 15; the one of 25 tokens before it is too long to be remembered."""
    lab = make_lab(window_tokens=40)
    texts = ["a" * 9, "b" * 24, "c" * 24, "d" * 9, "e" * 24]
    done = lab.ingest("a.txt", texts)
    chains = [[p.index for p in lab.worker.catalog.chain("alice", row.passage)] for row in done]
    assert chains == [[0], [0, 1], [2], [2, 3], [3, 4]]
    hits = lab.caller.store.lookup(lab.keys([f"a.txt#{i}" for i in range(5)]))
    assert {hit.status for hit in hits} == {Status.READY}
