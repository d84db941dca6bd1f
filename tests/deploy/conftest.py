"""The chart with each set of values."""

from __future__ import annotations

import pytest

from tests.deploy.rendering import VARIANTS, Rendered, variant


@pytest.fixture(params=list(VARIANTS))
def rendered(request: pytest.FixtureRequest) -> Rendered:
    """Return the release of each set of values in turn."""
    return variant(request.param)
