"""The catalog: names, tenants, and what a source consists of; a file of one worker and a Redis of many do the same."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kvstore.core.errors import CapacityError, ClosedError, InvalidInputError, KVError, NotFoundError
from kvworker.ingest.catalog import Catalog
from kvworker.ingest.redis_catalog import RedisCatalog
from kvworker.ingest.sqlite_catalog import SqliteCatalog
from tests.redis_server import RedisServer
from tests.worker.catalogs import NAMESPACE, alone, document, read_as, store

MakeCatalog = Callable[..., Catalog]


@pytest.fixture(params=["sqlite", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeCatalog]:
    """Return what opens a catalog over what an earlier one left; all are closed in the end."""
    made: list[Catalog] = []
    if request.param == "redis":
        redis_server: RedisServer = request.getfixturevalue("redis_server")
        redis_server.command("FLUSHALL")

    def open_one(namespace: bytes = NAMESPACE, capacity_bytes: int = 1 << 30) -> Catalog:
        if request.param == "sqlite":
            made.append(SqliteCatalog(namespace, tmp_path / "catalog.sqlite", capacity_bytes))
        else:
            made.append(RedisCatalog(namespace, redis_server.unix_url, capacity_bytes))
        return made[-1]

    yield open_one
    for catalog in made:
        catalog.close()


@pytest.fixture
def catalog(make: MakeCatalog) -> Catalog:
    """Open an empty catalog."""
    return make()


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
    """No passage is preferred; more digits tell them apart. Among 122,929 passages these two share their first eight."""
    twins = [replace(document("a.txt", 1, first_token)[0], index=i) for i, first_token in enumerate((51_198, 122_929))]
    catalog.add("alice", "a.txt", {"document": twins})
    with pytest.raises(InvalidInputError, match="several"):
        catalog.find("alice", twins[0].content.hex()[:8])
    assert catalog.find("alice", twins[1].content.hex()[:16]) == twins[1]


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


def test_models_see_nothing_of_each_other(make: MakeCatalog) -> None:
    """The same place may serve several models."""
    passages = store(make(), document("a.txt"))
    with pytest.raises(NotFoundError):
        make(bytes(32)).find("alice", passages[0].content.hex())


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
    catalog.add("alice", "a.txt", {"document": [passages[0], passages[2]]})
    with pytest.raises(NotFoundError):
        catalog.chain("alice", passages[2])


def test_listings_are_ordered_and_bounded(catalog: Catalog) -> None:
    """By source, then by place: 10 comes behind 9."""
    b, a = store(catalog, document("b.txt", 12)), store(catalog, document("a.txt", 2, first_token=50))
    assert catalog.listing("alice") == [*a, *b]
    assert catalog.listing("alice", "b.txt", limit=11) == b[:11]


def test_a_text_ingested_both_ways_has_both_readings_the_better_first(catalog: Catalog) -> None:
    """The second ingest does not displace the first, in either order."""
    for source, first_token, first, second in (("a.txt", 0, "document", "alone"), ("b.txt", 50, "alone", "document")):
        passages = document(source, first_token=first_token)
        for way in (first, second):
            store(catalog, passages if way == "document" else alone(passages), read_as=way)
        assert read_as(catalog, f"{source}#1") == ["document", "alone"]
        assert read_as(catalog, passages[1].content.hex()) == ["document", "alone"]
        assert catalog.listing("alice", source) == passages


def test_the_first_passage_of_a_document_is_one_chunk_in_both_readings(catalog: Catalog) -> None:
    """Nothing stands before it."""
    passages = store(catalog, document("a.txt"))
    store(catalog, alone(passages), read_as="alone")
    assert read_as(catalog, "a.txt#0") == ["document"]
    assert read_as(catalog, "a.txt#0", "alone") == ["alone"]


def test_a_question_may_allow_one_reading_only(catalog: Catalog) -> None:
    """Alone needs no ingest: its key follows from the tokens. In its document is what only an ingest of the document gives."""
    store(catalog, document("a.txt"))
    store(catalog, alone(document("b.txt", first_token=50)), read_as="alone")
    assert [read_as(catalog, "a.txt#1", asked) for asked in ("auto", "document", "alone")] == [["document"], ["document"], ["alone"]]
    assert [read_as(catalog, "b.txt#1", asked) for asked in ("auto", "document", "alone")] == [["alone"], [], ["alone"]]
    with pytest.raises(InvalidInputError, match="auto, document, alone"):
        read_as(catalog, "a.txt#1", "backwards")


def test_an_id_from_an_ingest_alone_never_means_a_reading_in_some_document(catalog: Catalog) -> None:
    """Who named the text by itself is not given traces of a document that holds it too."""
    passages = store(catalog, document("a.txt"))
    (only,) = store(catalog, [replace(alone(passages)[1], source="b.txt", index=0)], read_as="alone")
    assert [read_as(catalog, only.content.hex(), asked) for asked in ("auto", "document")] == [["alone"], []]


def test_readings_of_more_passages_than_one_statement_takes_are_found(catalog: Catalog) -> None:
    """SQLite bounds the values of a statement."""
    passages = store(catalog, document("a.txt", 1200))
    store(catalog, alone(passages), read_as="alone")
    found = catalog.readings("alice", [f"a.txt#{i}" for i in range(1, 1200)], "auto")
    assert {tuple(r.read_as for r in readings) for _, readings in found} == {("document", "alone")}


@pytest.mark.parametrize(("kept", "edited"), [("document", "alone"), ("alone", "document")])
def test_the_other_reading_stays_known_up_to_the_first_passage_that_changed(catalog: Catalog, kept: str, edited: str) -> None:
    """Behind it, the text that it knows is no longer that of the document."""
    old, new = document("a.txt", 4), document("a.txt", 4)
    new[2] = document("a.txt", 4, first_token=70)[2]
    ways = {"document": lambda p: p, "alone": alone}
    store(catalog, ways[kept](old), read_as=kept)
    store(catalog, ways[edited](new), read_as=edited)
    readings = [read_as(catalog, f"a.txt#{i}") for i in range(4)]
    assert [edited in r for r in readings[1:]] == [True] * 3
    assert [kept in r for r in readings[1:]] == [True, False, False]


def test_contents_that_a_source_no_longer_has_are_told(catalog: Catalog) -> None:
    """So that their chunks can be taken out of the store."""
    old = document("a.txt", 3)
    assert catalog.add("alice", "a.txt", {"document": old, "alone": alone(old)}) == []
    gone = catalog.add("alice", "a.txt", {"document": old[:2]})
    assert set(gone) == {old[2].content, alone(old)[2].content}


def test_a_forgotten_document_is_gone_with_everything_it_ever_said(catalog: Catalog) -> None:
    """Its ids too, also those of an earlier text, and also what only gave context."""
    old, context = document("a.txt", 3), document("a.txt", 2, first_token=90)
    catalog.add("alice", "a.txt", {"document": old}, behind=context)
    new = store(catalog, document("a.txt", 3, first_token=50))
    assert set(catalog.forget("alice", "a.txt")) == {p.content for p in new}
    for passage in (*old, *new, *context):
        with pytest.raises(NotFoundError):
            catalog.find("alice", passage.content.hex())
    assert catalog.listing("alice") == []


def test_forgetting_one_of_two_documents_with_the_same_beginning_leaves_the_other_whole(catalog: Catalog) -> None:
    """What both say stays, under the name of the one that is left, and chains stay complete."""
    context = document("a.txt", 2, first_token=90)
    a, b = document("a.txt", 3), document("b.txt", 5)
    catalog.add("alice", "a.txt", {"document": a}, behind=context)
    catalog.add("alice", "b.txt", {"document": b}, behind=context)
    assert set(catalog.forget("alice", "a.txt")) == {p.content for p in a}
    assert catalog.chain("alice", catalog.find("alice", "b.txt#4"))[-1] == b[4]
    assert catalog.find("alice", a[1].content.hex()).source == "b.txt"
    catalog.forget("alice", "b.txt")
    with pytest.raises(NotFoundError):
        catalog.find("alice", context[0].content.hex())


def test_a_document_that_gave_context_to_no_other_leaves_no_tokens_behind(tmp_path: Path) -> None:
    """Forgetting is for secrets too; other tenants and documents keep theirs."""
    catalog = SqliteCatalog(NAMESPACE, tmp_path / "catalog.sqlite")
    store(catalog, document("a.txt"))
    store(catalog, document("b.txt", first_token=50))
    store(catalog, document("a.txt"), tenant="bob")
    catalog.forget("alice", "a.txt")
    rows = catalog._db.execute("SELECT tenant, source, COUNT(*) FROM passages GROUP BY tenant, source").fetchall()
    assert rows == [("alice", "b.txt", 3), ("bob", "a.txt", 3)]
    catalog.close()


def test_forgetting_what_is_not_known_does_nothing(catalog: Catalog) -> None:
    """The caller may ask twice."""
    store(catalog, document("a.txt"))
    assert catalog.forget("alice", "b.txt") == []
    assert len(catalog.listing("alice")) == 3


def test_a_full_catalog_first_lets_go_of_texts_that_no_document_says_any_more(make: MakeCatalog) -> None:
    """Three passages of 12 B are a document; old texts of it are kept while there is room."""
    catalog = make(capacity_bytes=72)
    old, new = store(catalog, document("a.txt")), store(catalog, document("a.txt", first_token=50))
    assert catalog.find("alice", old[0].content.hex()) == old[0]
    b = store(catalog, document("b.txt", first_token=100))
    with pytest.raises(NotFoundError):
        catalog.find("alice", old[0].content.hex())
    assert catalog.listing("alice") == [*new, *b]


def test_a_document_too_many_is_refused_and_changes_nothing(make: MakeCatalog) -> None:
    """Documents are never dropped behind their owner's back; each tenant has room of its own, also after a restart."""
    for _ in range(2):
        catalog = make(capacity_bytes=36)
        a = store(catalog, document("a.txt"))
        with pytest.raises(CapacityError, match=r"take 48 B, more than the 36 B of worker.catalog_bytes"):
            catalog.add("alice", "b.txt", {"document": document("b.txt", 1, first_token=100)})
        assert catalog.listing("alice") == a
        store(catalog, document("b.txt", first_token=100), tenant="bob")
        assert store(catalog, document("a.txt")) == a
        catalog.close()


def test_room_of_a_forgotten_document_is_free_again(make: MakeCatalog) -> None:
    """Bytes are counted as they are."""
    catalog = make(capacity_bytes=36)
    for i in range(5):
        store(catalog, document(f"{i}.txt", first_token=10 * i))
        catalog.forget("alice", f"{i}.txt")
    assert catalog.listing("alice") == []


def test_everything_is_there_again_after_opening_it_again(make: MakeCatalog) -> None:
    """Tokens outlive every cached chunk."""
    first = make()
    passages = store(first, document("a.txt"))
    first.close()
    second = make()
    assert second.listing("alice") == passages
    assert second.chain("alice", passages[2]) == passages


def test_a_closed_catalog_says_so(catalog: Catalog) -> None:
    """A request that comes while the worker stops gets an error that can be tried elsewhere."""
    catalog.close()
    with pytest.raises(ClosedError):
        catalog.find("alice", "a.txt#0")


def test_a_file_that_is_no_catalog_is_an_error_that_names_it(tmp_path: Path) -> None:
    """Whoever runs the worker must know which file to move away."""
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(KVError, match=re.escape(str(path))):
        SqliteCatalog(NAMESPACE, path)


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
