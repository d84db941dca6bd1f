"""Requests to the context service, checked before they travel: what can never work is refused here and says what to change."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvproto.v1 import context_pb2
from kvstore.core.api import Scope
from kvstore.core.errors import InvalidInputError

MAX_PASSAGES = 4096
MAX_REQUEST_NBYTES = 4_000_000  # a server with gRPC's own defaults takes messages of 4 MiB
MAX_TOKENS = 2**31 - 1
_MIN_ID_LENGTH = 8
READ_AS = {
    "auto": context_pb2.READ_AS_UNSPECIFIED,
    "document": context_pb2.READ_AS_DOCUMENT,
    "alone": context_pb2.READ_AS_ALONE,
    "both": context_pb2.READ_AS_BOTH,
}
INGEST_AS = ("document", "alone", "both")
ASK_AS = ("auto", "document", "alone")


def ingest_request(source: str, passages: Sequence[str], read_as: str) -> context_pb2.IngestRequest:
    """Return the request that reads a document; raises InvalidInputError."""
    way = _read_as(read_as, INGEST_AS)
    texts = _strings(passages, "passages")
    empty = [i for i, text in enumerate(texts) if not text.strip()]
    if empty:
        raise InvalidInputError(f"passage {empty[0]} is empty; leave out passages without text")
    nbytes = sum(_utf8_nbytes(text) for text in texts)
    if nbytes > MAX_REQUEST_NBYTES:
        raise InvalidInputError(f"{nbytes} B of text do not fit one request of at most {MAX_REQUEST_NBYTES} B; cut the document")
    return context_pb2.IngestRequest(source=_text(source, "source"), passages=texts, read_as=way)


def ask_request(
    passage_ids: Sequence[str],
    question: str,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    policy: str,
    planner: str,
    read_as: str,
    ttft_target_s: float,
) -> context_pb2.AskRequest:
    """Return the request that asks a question over an ordered list of passages; raises InvalidInputError."""
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or not 1 <= max_tokens <= MAX_TOKENS:
        raise InvalidInputError(f"max_tokens must be a whole number of at least 1, got {max_tokens!r}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InvalidInputError(f"temperature must be 0 (greedy) or above, got {temperature!r}")
    if not 0 <= seed < 2**64:
        raise InvalidInputError(f"seed must be within 0 and 2**64 - 1, got {seed!r}")
    if not (math.isfinite(ttft_target_s) and ttft_target_s >= 0):
        raise InvalidInputError(f"ttft_target_s must be 0 (the worker's) or more seconds, got {ttft_target_s!r}")
    return context_pb2.AskRequest(
        passage_ids=_ids(passage_ids),
        question=_text(question, "question"),
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        policy=policy,
        planner=planner,
        read_as=_read_as(read_as, ASK_AS),
        ttft_target_s=ttft_target_s,
    )


def resolve_request(passage_ids: Sequence[str], read_as: str) -> context_pb2.ResolveRequest:
    """Return the request for the stored chunks of passages; raises InvalidInputError."""
    return context_pb2.ResolveRequest(passage_ids=_ids(passage_ids), read_as=_read_as(read_as, ASK_AS))


def forget_request(source: str) -> context_pb2.ForgetRequest:
    """Return the request that takes a document back; raises InvalidInputError."""
    return context_pb2.ForgetRequest(source=_text(source, "source"))


def passages_request(source: str, limit: int) -> context_pb2.PassagesRequest:
    """Return the request that lists passages; raises InvalidInputError."""
    if not 1 <= limit < 2**32:
        raise InvalidInputError(f"limit must be at least 1, got {limit!r}")
    return context_pb2.PassagesRequest(source=source, limit=limit)


def scope(source: str, model: str) -> Scope:
    """Return the scope of one document or one model; raises InvalidInputError unless exactly one is named."""
    if bool(source) == bool(model):
        raise InvalidInputError("name either the source or the model to invalidate; invalidate_all takes back everything")
    return Scope("source", source) if source else Scope("model", model)


def _read_as(read_as: str, allowed: Sequence[str]) -> context_pb2.ReadAs:
    """Return a way to read; raises InvalidInputError unless it is one of those allowed."""
    if read_as not in allowed:
        raise InvalidInputError(f"read_as must be one of {', '.join(allowed)}, got {read_as!r}")
    return READ_AS[read_as]


def _ids(passage_ids: Sequence[str]) -> list[str]:
    """Return ids or names of passages, none of them shorter than a server accepts."""
    names = _strings(passage_ids, "passage_ids")
    short = [name for name in names if len(name) < _MIN_ID_LENGTH and "#" not in name]
    if short:
        raise InvalidInputError(f"{short[0]!r} names no passage; give at least {_MIN_ID_LENGTH} hex digits of its id, or source#index")
    return names


def _strings(values: Sequence[str], name: str) -> list[str]:
    """Return a list of 1 to MAX_PASSAGES strings; a lone string is refused, since it would be read letter by letter."""
    if isinstance(values, str | bytes):
        raise InvalidInputError(f"{name} must be a list of strings, got one {type(values).__name__}; put it in a list")
    texts = list(values)
    if not 1 <= len(texts) <= MAX_PASSAGES:
        raise InvalidInputError(f"{name} must hold 1 to {MAX_PASSAGES} items, got {len(texts)}")
    wrong = [i for i, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        raise InvalidInputError(f"{name}[{wrong[0]}] must be a string, got {type(texts[wrong[0]]).__name__}")
    return texts


def _text(text: str, name: str) -> str:
    """Return a string that says something and can be sent as UTF-8."""
    if not isinstance(text, str) or not text.strip():
        raise InvalidInputError(f"{name} must be a string with text, got {text!r}")
    if _utf8_nbytes(text) > MAX_REQUEST_NBYTES:
        raise InvalidInputError(f"{name} takes {_utf8_nbytes(text)} B, a request at most {MAX_REQUEST_NBYTES} B")
    return text


def _utf8_nbytes(text: str) -> int:
    """Return the bytes of a text in UTF-8; a lone surrogate, which UTF-8 cannot say, raises InvalidInputError."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"the text is not valid Unicode at character {error.start}: {error.reason}") from error
