"""What the whole run shares."""

from __future__ import annotations

import gc

from hypothesis import settings

# An example takes as long as the machine is busy.
settings.register_profile("larder", deadline=None)
settings.load_profile("larder")


def pytest_collection_finish() -> None:
    """Leave modules and collected tests out of garbage collections: they stay to the end, and tests of leaks collect often."""
    gc.collect()
    gc.freeze()
