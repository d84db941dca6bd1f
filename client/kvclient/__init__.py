"""The light client of Larder: `Larder` for threads, `AsyncLarder` for asyncio, and the records that they hand out.

Names are imported when they are first used, so that a program pays for what it uses.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvclient._async.answer import AsyncAnswer
    from kvclient._async.client import AsyncLarder
    from kvclient._sync.answer import Answer
    from kvclient._sync.client import Larder
    from kvclient.channel import ClientTLS
    from kvclient.records import AnswerExplanation, Info, Ingested, IngestedPassage, Passage, PassageReport, Report, ResolvedPassage, Token
    from kvclient.retry import Retry
    from kvclient.stored import StoredPassage

_PLACES = {
    "Answer": "kvclient._sync.answer",
    "AnswerExplanation": "kvclient.records",
    "AsyncAnswer": "kvclient._async.answer",
    "AsyncLarder": "kvclient._async.client",
    "ClientTLS": "kvclient.channel",
    "Info": "kvclient.records",
    "Ingested": "kvclient.records",
    "IngestedPassage": "kvclient.records",
    "Larder": "kvclient._sync.client",
    "Passage": "kvclient.records",
    "PassageReport": "kvclient.records",
    "Report": "kvclient.records",
    "ResolvedPassage": "kvclient.records",
    "Retry": "kvclient.retry",
    "StoredPassage": "kvclient.stored",
    "Token": "kvclient.records",
}

__all__ = [
    "Answer",
    "AnswerExplanation",
    "AsyncAnswer",
    "AsyncLarder",
    "ClientTLS",
    "Info",
    "Ingested",
    "IngestedPassage",
    "Larder",
    "Passage",
    "PassageReport",
    "Report",
    "ResolvedPassage",
    "Retry",
    "StoredPassage",
    "Token",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(_PLACES)
