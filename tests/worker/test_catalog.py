"""The catalog: names, tenants, and what a source consists of."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kvstore.core.errors import InvalidInputError, KVError, NotFoundError
from kvworker.ingest.catalog import Catalog
from kvworker.ingest.passages import Passage, read_window
from kvworker.ingest.windows import Window

NAMESPACE = bytes(range(32))


def document(source: str, n_passages: int = 3, first_token: int = 0) -> list[Passage]:
    """Return the passages of a document."""
    tokens = [(256, first_token + i, 2**32 - 1) for i in range(n_passages)]
    return read_window(NAMESPACE, source, [f"text {i}" for i in range(n_passages)], tokens, Window(0, 0, n_passages))


def store(catalog: Catalog, passages: list[Passage], tenant: str = "alice") -> list[Passage]:
    """Add passages and say that their source consists of them."""
    catalog.add(tenant, passages)
    catalog.place(tenant, passages[0].source, [p.content for p in passages])
    return passages


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    """Open a catalog in memory."""
    catalog = Catalog(NAMESPACE)
    yield catalog
    catalog.close()


@pytest.mark.parametrize("n_digits", [8, 13, 63, 64])
def test_a_passage_is_found_by_the_start_of_its_identity(catalog: Catalog, n_digits: int) -> None:
    """Odd numbers of digits too."""
    passages = store(catalog, document("a.txt"))
    assert [catalog.find("alice", p.content.hex()[:n_digits]) for p in passages] == passages


@pytest.mark.parametrize(
    "name", ["", "abc", "0123456", "0123456789abcdeg", "A" * 64, "0" * 65, "a.txt", "#1", "a.txt#", "a.txt#-1", "a.txt#1x"]
)
def test_what_is_no_name_is_refused(catalog: Catalog, name: str) -> None:
    """Less than 8 digits are too few to mean one passage for long."""
    store(catalog, document("a.txt"))
    with pytest.raises(InvalidInputError, match="names no passage"):
        catalog.find("alice", name)


@pytest.mark.parametrize("name", ["0" * 8, "0" * 64, "b.txt#0", "a.txt#3", "a.txt#999999999999999999"])
def test_a_name_that_nobody_stored_is_not_found(catalog: Catalog, name: str) -> None:
    """The message says what to do."""
    store(catalog, document("a.txt"))
    with pytest.raises(NotFoundError, match="ingest"):
        catalog.find("alice", name)


def test_digits_that_start_two_identities_are_refused(catalog: Catalog) -> None:
    """No passage is preferred; one digit more tells them apart."""
    (passage,) = document("a.txt", 1)
    twins = [replace(passage, content=bytes.fromhex("ab" * 5 + last * 27)) for last in ("00", "01")]
    catalog.add("alice", twins)
    with pytest.raises(InvalidInputError, match="several"):
        catalog.find("alice", "ab" * 5)
    assert catalog.find("alice", "ab" * 5 + "01") == twins[1]


@pytest.mark.parametrize("source", ["a.txt", "a#b", "dir with space/ü.txt", "line\nbreak", "a.txt#0", "%_'\""])
def test_a_passage_is_found_by_its_source_and_place(catalog: Catalog, source: str) -> None:
    """Whatever the source is called."""
    passages = store(catalog, document(source))
    assert [catalog.find("alice", f"{source}#{i}") for i in range(3)] == passages


def test_a_passage_found_by_place_says_that_place_where_two_sources_share_it(catalog: Catalog) -> None:
    """One content, two places."""
    store(catalog, document("a.txt"))
    store(catalog, document("b.txt"))
    assert [catalog.find("alice", f"{source}#1").source for source in ("a.txt", "b.txt")] == ["a.txt", "b.txt"]


def test_tenants_see_nothing_of_each_other(catalog: Catalog) -> None:
    """Neither names nor starts of identities nor listings, and one's places are not replaced by another's."""
    passages = store(catalog, document("a.txt"))
    for name in (passages[0].content.hex(), "a.txt#0"):
        with pytest.raises(NotFoundError):
            catalog.find("bob", name)
    assert catalog.listing("bob") == []
    store(catalog, document("a.txt", 1, first_token=100), tenant="bob")
    assert catalog.listing("alice") == passages


def test_models_see_nothing_of_each_other(tmp_path: Path) -> None:
    """The same file may serve several models, one after the other."""
    first = Catalog(NAMESPACE, tmp_path / "catalog.sqlite")
    passages = store(first, document("a.txt"))
    first.close()
    second = Catalog(bytes(32), tmp_path / "catalog.sqlite")
    with pytest.raises(NotFoundError):
        second.find("alice", passages[0].content.hex())
    second.close()


def test_ingesting_a_source_again_replaces_its_places_and_keeps_old_identities_answerable(catalog: Catalog) -> None:
    """Somebody may still hold an id of the text as it was."""
    old = store(catalog, document("a.txt", 3))
    new = store(catalog, document("a.txt", 2, first_token=50))
    assert catalog.listing("alice", "a.txt") == new
    assert [catalog.find("alice", p.content.hex()) for p in old] == old
    with pytest.raises(NotFoundError):
        catalog.find("alice", "a.txt#2")


def test_a_chain_leads_from_the_first_passage_to_the_one_asked_for(catalog: Catalog) -> None:
    """That is what has to be read again to compute its chunk again."""
    passages = store(catalog, document("a.txt", 4))
    assert catalog.chain("alice", passages[2]) == passages[:3]
    assert catalog.chain("alice", passages[0]) == passages[:1]


def test_a_chain_with_a_passage_missing_is_an_error_of_ours(catalog: Catalog) -> None:
    """Rather than a chunk computed behind something else."""
    passages = document("a.txt", 3)
    catalog.add("alice", [passages[0], passages[2]])
    with pytest.raises(NotFoundError):
        catalog.chain("alice", passages[2])


def test_listings_are_ordered_and_bounded(catalog: Catalog) -> None:
    """By source, then by place: 10 comes behind 9."""
    b, a = store(catalog, document("b.txt", 12)), store(catalog, document("a.txt", 2, first_token=50))
    assert catalog.listing("alice") == [*a, *b]
    assert catalog.listing("alice", "b.txt", limit=11) == b[:11]


def test_everything_is_there_again_after_reopening_the_file(tmp_path: Path) -> None:
    """Tokens outlive every cached chunk."""
    path = tmp_path / "catalog.sqlite"
    first = Catalog(NAMESPACE, path)
    passages = store(first, document("a.txt"))
    first.close()
    second = Catalog(NAMESPACE, path)
    assert second.listing("alice") == passages
    assert second.chain("alice", passages[2]) == passages
    second.close()


def test_a_file_that_is_no_catalog_is_an_error_that_names_it(tmp_path: Path) -> None:
    """Whoever runs the worker must know which file to move away."""
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(KVError, match=re.escape(str(path))):
        Catalog(NAMESPACE, path)


def test_threads_may_read_and_write_at_once(catalog: Catalog) -> None:
    """One connection, many requests."""
    ready = threading.Barrier(4)

    def work(n: int) -> int:
        ready.wait(10)
        for i in range(20):
            passages = store(catalog, document(f"{n}-{i}.txt", 2, first_token=1000 * n + 10 * i))
            assert catalog.find("alice", f"{n}-{i}.txt#1") == passages[1]
        return len(catalog.listing("alice", f"{n}-3.txt"))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [2] * 4
    assert len(catalog.listing("alice")) == 160
