"""Records of the core as messages of the store service, and back; what comes from the wire is checked here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from kvproto.v1 import store_pb2 as pb
from kvstore.core.api import Entry, Explanation, Hit, Scope, Status, StoreStats, TierStats
from kvstore.core.epochs import Epoch, EpochAnswer, EpochBook
from kvstore.core.errors import FormatError, InvalidInputError
from kvstore.core.key import ChunkKey

MAX_KEYS = 16384
MAX_ENTRIES = 1 << 20
MAX_EPOCHS = 1000
"""Most epochs in one message; 4 kB of name each fit the largest."""
MAX_LISTED_EPOCHS = 1 << 20

_TO_STATUS = {
    Status.READY: pb.HIT_STATUS_READY,
    Status.PENDING: pb.HIT_STATUS_PENDING,
    Status.ABSENT: pb.HIT_STATUS_ABSENT,
}
_FROM_STATUS = {message: status for status, message in _TO_STATUS.items()}


def key_to_wire(key: ChunkKey) -> pb.ChunkKey:
    """Return the key as a message."""
    return pb.ChunkKey(namespace=key.namespace, content=key.content, variant=key.variant)


def key_from_wire(message: pb.ChunkKey) -> ChunkKey:
    """Read a key; digests of another length than 32 bytes raise FormatError."""
    return ChunkKey(message.namespace, message.content, message.variant)


def keys_from_wire(messages: Iterable[pb.ChunkKey]) -> list[ChunkKey]:
    """Read at most `MAX_KEYS` keys."""
    keys = [key_from_wire(message) for message in messages]
    if len(keys) > MAX_KEYS:
        raise InvalidInputError(f"{len(keys)} keys in one call; send at most {MAX_KEYS}")
    return keys


def hit_to_wire(hit: Hit) -> pb.Hit:
    """Return the hit as a message."""
    return pb.Hit(key=key_to_wire(hit.key), status=_TO_STATUS[hit.status], tier=hit.tier, nbytes=hit.nbytes, reason=hit.reason)


def hit_from_wire(message: pb.Hit) -> Hit:
    """Read a hit."""
    if message.status not in _FROM_STATUS:
        raise FormatError(f"hit status {message.status} is not known here")
    return Hit(key_from_wire(message.key), _FROM_STATUS[message.status], message.tier, message.nbytes, message.reason)


def scope_to_wire(scope: Scope) -> pb.InvalidateRequest:
    """Return the scope as a message; an unknown kind raises InvalidInputError."""
    if scope.kind == "tenant":
        return pb.InvalidateRequest(tenant=True)
    if scope.kind == "model":
        return pb.InvalidateRequest(model=scope.value)
    if scope.kind == "source":
        return pb.InvalidateRequest(source=scope.value)
    raise InvalidInputError(f"scope {scope.kind!r} is not one of tenant, model, source")


def scope_from_wire(message: pb.InvalidateRequest) -> Scope:
    """Read a scope; none, or a tenant that is false, raises FormatError."""
    match message.WhichOneof("scope"):
        case "model":
            return Scope("model", message.model)
        case "source":
            return Scope("source", message.source)
        case "tenant" if message.tenant:
            return Scope("tenant")
    raise FormatError("an invalidation names a model, a source, or tenant = true")


def epochs_to_wire(epochs: EpochBook) -> list[pb.Epoch]:
    """Return epochs as messages."""
    return [pb.Epoch(kind=scope.kind, name=scope.value, number=epoch.number, proof=epoch.proof) for scope, epoch in epochs.items()]


def epochs_from_wire(messages: Iterable[pb.Epoch]) -> dict[Scope, Epoch]:
    """Read epochs; whether their scopes can be, the store checks."""
    return {Scope(message.kind, message.name): Epoch(message.number, message.proof) for message in messages}


def epoch_answer_to_wire(answer: EpochAnswer) -> Iterator[pb.EpochsResponse]:
    """Return what a store says about epochs, in messages of at most MAX_EPOCHS."""
    epochs = epochs_to_wire(answer.epochs or {})
    yield pb.EpochsResponse(server=answer.server, digest=answer.digest, is_known=answer.epochs is None, epochs=epochs[:MAX_EPOCHS])
    for at in range(MAX_EPOCHS, len(epochs), MAX_EPOCHS):
        yield pb.EpochsResponse(epochs=epochs[at : at + MAX_EPOCHS])


def epoch_answer_from_wire(messages: Iterable[pb.EpochsResponse]) -> EpochAnswer:
    """Read what a store says about epochs; an answer without a beginning or an end raises FormatError."""
    first: pb.EpochsResponse | None = None
    epochs: dict[Scope, Epoch] = {}
    for message in messages:
        first = first or message
        epochs |= epochs_from_wire(message.epochs)
        if len(epochs) > MAX_LISTED_EPOCHS:
            raise FormatError(f"more than {MAX_LISTED_EPOCHS} epochs of one tenant; a store lists no more")
    if first is None:
        raise FormatError("the store answered a question for epochs with nothing")
    return EpochAnswer(first.server, first.digest, None if first.is_known else epochs)


def entry_to_wire(entry: Entry) -> pb.ListResponse:
    """Return a listed chunk as a message."""
    return pb.ListResponse(
        key=key_to_wire(entry.key),
        kind=entry.kind,
        n_tokens=entry.n_tokens,
        nbytes=entry.nbytes,
        codec=entry.codec,
        tiers=entry.tiers,
        source=entry.source,
    )


def entry_from_wire(message: pb.ListResponse) -> Entry:
    """Read a listed chunk."""
    key, tiers = key_from_wire(message.key), tuple(message.tiers)
    return Entry(key, message.kind, message.n_tokens, message.nbytes, message.codec, tiers, message.source)


def stats_to_wire(stats: StoreStats) -> pb.StatsResponse:
    """Return counters and tiers as a message."""
    return pb.StatsResponse(counters=stats.counters, tiers=[pb.TierStats(**vars(tier)) for tier in stats.tiers])


def stats_from_wire(message: pb.StatsResponse) -> StoreStats:
    """Read counters and tiers."""
    tiers = (TierStats(t.name, t.used_bytes, t.capacity_bytes, t.entries, t.is_available, t.is_durable) for t in message.tiers)
    return StoreStats(dict(message.counters), tuple(tiers))


def explanation_to_wire(explanation: Explanation) -> pb.ExplainResponse:
    """Return an explanation as a message."""
    return pb.ExplainResponse(
        hit=hit_to_wire(explanation.hit),
        tenant_epoch=explanation.tenant_epoch,
        model_epoch=explanation.model_epoch,
        lines=explanation.lines,
    )


def explanation_from_wire(message: pb.ExplainResponse) -> Explanation:
    """Read an explanation."""
    return Explanation(hit_from_wire(message.hit), message.tenant_epoch, message.model_epoch, tuple(message.lines))


def check_seconds(value: float, name: str) -> float:
    """Return a number of seconds; NaN, infinity or a negative one raises InvalidInputError."""
    if not math.isfinite(value) or value < 0:
        raise InvalidInputError(f"{name} must be finite and not negative, got {value!r}")
    return value
