"""What documents say of tests: each one that they name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.architecture.source import ROOT

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
