"""Keys of a document's passages: what decides them, and what does not."""

from __future__ import annotations

import pytest

from kvstore.core.key import Kind, content_key
from kvworker.ingest.passages import Passage, read_window
from kvworker.ingest.windows import Window

NAMESPACE = bytes(range(32))
TOKENS = [(256, 1, 2), (256, 3), (256, 4, 5, 6), (256, 7)]
TEXTS = ["one", "two", "three", "four"]


def read(tokens: list[tuple[int, ...]] = TOKENS, window: Window = Window(0, 0, 4), namespace: bytes = NAMESPACE) -> list[Passage]:  # noqa: B008 (frozen)
    """Read one window of a document."""
    return read_window(namespace, "a.txt", TEXTS, tokens, window)


def keys(passages: list[Passage]) -> list[bytes]:
    """Return content keys."""
    return [p.content for p in passages]


def test_the_first_passage_of_a_document_has_the_key_of_that_passage_read_alone() -> None:
    """It is the same computation."""
    first, second, *_ = read()
    assert (first.kind, first.content) == (Kind.ALONE, content_key(NAMESPACE, Kind.ALONE, TOKENS[0]))
    assert (second.kind, second.parent) == (Kind.DOCUMENT, first.content)


def test_keys_are_chained_from_the_first_passage_of_the_window() -> None:
    """That is what a passage was read behind; passages before the window were not seen."""
    inner = read(window=Window(1, 2, 4))
    assert keys(inner) == keys(read_window(NAMESPACE, "a.txt", TEXTS[1:], TOKENS[1:], Window(0, 1, 3)))
    assert not set(keys(inner)) & set(keys(read()))
    assert [p.index for p in inner] == [1, 2, 3]


def test_the_place_in_a_document_changes_no_key() -> None:
    """The same passages behind others, read alone, keep their keys: position is free."""
    shifted = [(256, 9, 9), *TOKENS]
    assert keys(read_window(NAMESPACE, "b.txt", ["x", *TEXTS], shifted, Window(1, 1, 5))) == keys(read())


@pytest.mark.parametrize("index", range(4))
def test_one_other_token_changes_the_key_of_its_passage_and_of_all_behind_it(index: int) -> None:
    """What stands before stays as it was."""
    changed = [ids if i != index else (*ids[:-1], ids[-1] + 1) for i, ids in enumerate(TOKENS)]
    same = [a == b for a, b in zip(keys(read()), keys(read(changed)), strict=True)]
    assert same == [i < index for i in range(4)]


def test_another_model_changes_every_key() -> None:
    """Namespaces share nothing."""
    assert not set(keys(read())) & set(keys(read(namespace=bytes(32))))


def test_moving_a_border_between_passages_changes_the_keys() -> None:
    """The same tokens cut elsewhere are other passages."""
    moved = [(256, 1), (2, 256, 3), *TOKENS[2:]]
    assert not set(keys(read())) & set(keys(read(moved)))


@pytest.mark.parametrize(
    ("text", "preview"), [("one\n two\tthree", "one two three"), ("x" * 60, "x" * 60), ("x" * 61, "x" * 57 + "..."), ("", "")]
)
def test_a_preview_is_one_short_line(text: str, preview: str) -> None:
    """Tables have no room for more."""
    (passage,) = read_window(NAMESPACE, "a.txt", [text], [(1,)], Window(0, 0, 1))
    assert passage.preview == preview
