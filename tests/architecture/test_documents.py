"""What documents point to: each test and each page that they name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.architecture.source import ROOT

_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
_NAMED = re.compile(r"(?:\bt|\btests)/[\w/.-]+|::\w+")


def named_tests(document: str) -> Iterator[tuple[str, str]]:
    """Yield path and test name of each test that a document names; `::name` alone is of the path before it."""
    path = ""
    for found in _NAMED.findall((ROOT / document).read_text()):
        if found.startswith("::"):
            yield path, found[2:]
        else:
            path = re.sub("^t/", "tests/", found.rstrip("."))
            yield path, ""


@pytest.mark.parametrize("document", ["PROMISES.md", "THREAT_MODEL.md"])
def test_every_test_that_a_document_names_is_there(document: str) -> None:
    """A promise without its test is a wish."""
    missing = []
    for path, name in named_tests(document):
        file = ROOT / path
        if not file.exists() or (name and f"def {name}(" not in file.read_text()):
            missing.append(f"{path}::{name}")
    assert not missing


def test_the_documents_name_tests() -> None:
    """A pattern that finds nothing would pass."""
    assert all(len(list(named_tests(document))) > 10 for document in ("PROMISES.md", "THREAT_MODEL.md"))


def anchors(page: str) -> set[str]:
    """Return what can be linked to within a page: its headings, as GitHub writes them, and ids."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(re.findall(r'id="([^"]+)"', page))


DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "kvstore" / "DESIGN.md"]
)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(document: str) -> None:
    """A page that moved takes its links along."""
    dead = []
    for target, anchor in _LINK.findall((ROOT / document).read_text()):
        page = (ROOT / document).parent / target if target else ROOT / document
        if not page.exists() or (anchor and anchor not in anchors(page.read_text())):
            dead.append(f"{target}#{anchor}")
    assert not dead


def test_the_documents_link_to_each_other() -> None:
    """Nor would this pattern have anything to find."""
    assert sum(len(_LINK.findall((ROOT / document).read_text())) for document in DOCUMENTS) > 20
