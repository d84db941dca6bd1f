"""Stores that are closed behind the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.store.stores import OpenStore, closing_stores


@pytest.fixture
def open_store() -> Iterator[OpenStore]:
    """Open stores that are closed behind the test."""
    with closing_stores() as opener:
        yield opener
