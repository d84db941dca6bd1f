"""The client of Larder for RAG backends: `Larder` for threads, `AsyncLarder` for asyncio, their records and their errors.

    from kvclient import Larder

    with Larder("worker:7421", token="...") as larder:
        notes = larder.ingest("notes.txt", ["The first passage.", "The second passage."])
        answer = larder.ask(notes.ids, "What do the notes say?")
        for token in answer:
            print(token, end="")
        print(answer.report)

Every failure is a `KVError`; its class says what failed, and `retryable` whether the same call may succeed later. Names are imported when
they are first used, so that a program pays for what it uses.
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
    from kvstore.core.errors import (
        AuthError,
        CapacityError,
        ClosedError,
        ConfigError,
        CorruptError,
        DeadlineError,
        ForbiddenError,
        FormatError,
        IdentityError,
        InvalidInputError,
        KVError,
        NotFoundError,
        QuotaError,
        TierUnavailableError,
        UnsupportedError,
    )

_PLACES = {
    "Answer": "kvclient._sync.answer",
    "AnswerExplanation": "kvclient.records",
    "AsyncAnswer": "kvclient._async.answer",
    "AsyncLarder": "kvclient._async.client",
    "AuthError": "kvstore.core.errors",
    "CapacityError": "kvstore.core.errors",
    "ClientTLS": "kvclient.channel",
    "ClosedError": "kvstore.core.errors",
    "ConfigError": "kvstore.core.errors",
    "CorruptError": "kvstore.core.errors",
    "DeadlineError": "kvstore.core.errors",
    "ForbiddenError": "kvstore.core.errors",
    "FormatError": "kvstore.core.errors",
    "IdentityError": "kvstore.core.errors",
    "Info": "kvclient.records",
    "Ingested": "kvclient.records",
    "IngestedPassage": "kvclient.records",
    "InvalidInputError": "kvstore.core.errors",
    "KVError": "kvstore.core.errors",
    "Larder": "kvclient._sync.client",
    "NotFoundError": "kvstore.core.errors",
    "Passage": "kvclient.records",
    "PassageReport": "kvclient.records",
    "QuotaError": "kvstore.core.errors",
    "Report": "kvclient.records",
    "ResolvedPassage": "kvclient.records",
    "Retry": "kvclient.retry",
    "StoredPassage": "kvclient.stored",
    "TierUnavailableError": "kvstore.core.errors",
    "Token": "kvclient.records",
    "UnsupportedError": "kvstore.core.errors",
}

__all__ = [
    "Answer",
    "AnswerExplanation",
    "AsyncAnswer",
    "AsyncLarder",
    "AuthError",
    "CapacityError",
    "ClientTLS",
    "ClosedError",
    "ConfigError",
    "CorruptError",
    "DeadlineError",
    "ForbiddenError",
    "FormatError",
    "IdentityError",
    "Info",
    "Ingested",
    "IngestedPassage",
    "InvalidInputError",
    "KVError",
    "Larder",
    "NotFoundError",
    "Passage",
    "PassageReport",
    "QuotaError",
    "Report",
    "ResolvedPassage",
    "Retry",
    "StoredPassage",
    "TierUnavailableError",
    "Token",
    "UnsupportedError",
]


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        """Import a public name from its module."""
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(_PLACES)
