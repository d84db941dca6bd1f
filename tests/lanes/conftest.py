"""Every test of the lanes leaves no thread and no open file behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.leaks import leaving_nothing


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """See `tests.server.leaks`; what other fixtures made is let go of first, since memory lives as long as somebody refers to it."""
    with leaving_nothing():
        yield
        request.node.funcargs.clear()
