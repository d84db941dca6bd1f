from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HitStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HIT_STATUS_UNSPECIFIED: _ClassVar[HitStatus]
    HIT_STATUS_READY: _ClassVar[HitStatus]
    HIT_STATUS_PENDING: _ClassVar[HitStatus]
    HIT_STATUS_ABSENT: _ClassVar[HitStatus]
HIT_STATUS_UNSPECIFIED: HitStatus
HIT_STATUS_READY: HitStatus
HIT_STATUS_PENDING: HitStatus
HIT_STATUS_ABSENT: HitStatus

class ChunkKey(_message.Message):
    __slots__ = ("namespace", "content", "variant")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    namespace: bytes
    content: bytes
    variant: bytes
    def __init__(self, namespace: _Optional[bytes] = ..., content: _Optional[bytes] = ..., variant: _Optional[bytes] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("key", "status", "tier", "nbytes", "reason")
    KEY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    key: ChunkKey
    status: HitStatus
    tier: str
    nbytes: int
    reason: str
    def __init__(self, key: _Optional[_Union[ChunkKey, _Mapping]] = ..., status: _Optional[_Union[HitStatus, str]] = ..., tier: _Optional[str] = ..., nbytes: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("keys", "lease_s")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[ChunkKey]
    lease_s: float
    def __init__(self, keys: _Optional[_Iterable[_Union[ChunkKey, _Mapping]]] = ..., lease_s: _Optional[float] = ...) -> None: ...

class LookupResponse(_message.Message):
    __slots__ = ("hits",)
    HITS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    def __init__(self, hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ...) -> None: ...

class OpenLaneRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OpenLaneResponse(_message.Message):
    __slots__ = ("ticket", "shm_path", "machine", "tcp_port", "socket_buffer_bytes")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    SHM_PATH_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    TCP_PORT_FIELD_NUMBER: _ClassVar[int]
    SOCKET_BUFFER_BYTES_FIELD_NUMBER: _ClassVar[int]
    ticket: bytes
    shm_path: str
    machine: str
    tcp_port: int
    socket_buffer_bytes: int
    def __init__(self, ticket: _Optional[bytes] = ..., shm_path: _Optional[str] = ..., machine: _Optional[str] = ..., tcp_port: _Optional[int] = ..., socket_buffer_bytes: _Optional[int] = ...) -> None: ...

class ScrubRequest(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[ChunkKey]
    def __init__(self, keys: _Optional[_Iterable[_Union[ChunkKey, _Mapping]]] = ...) -> None: ...

class ScrubResponse(_message.Message):
    __slots__ = ("damaged",)
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    damaged: int
    def __init__(self, damaged: _Optional[int] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[ChunkKey]
    def __init__(self, keys: _Optional[_Iterable[_Union[ChunkKey, _Mapping]]] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ("deleted",)
    DELETED_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    def __init__(self, deleted: _Optional[int] = ...) -> None: ...

class InvalidateRequest(_message.Message):
    __slots__ = ("tenant", "model", "source")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    tenant: bool
    model: str
    source: str
    def __init__(self, tenant: bool = ..., model: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class InvalidateResponse(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class Epoch(_message.Message):
    __slots__ = ("kind", "name", "number", "proof")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    number: int
    proof: bytes
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., number: _Optional[int] = ..., proof: _Optional[bytes] = ...) -> None: ...

class EpochsRequest(_message.Message):
    __slots__ = ("at_least", "known_digest")
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    KNOWN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    at_least: _containers.RepeatedCompositeFieldContainer[Epoch]
    known_digest: bytes
    def __init__(self, at_least: _Optional[_Iterable[_Union[Epoch, _Mapping]]] = ..., known_digest: _Optional[bytes] = ...) -> None: ...

class EpochsResponse(_message.Message):
    __slots__ = ("server", "digest", "is_known", "epochs")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    IS_KNOWN_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    server: str
    digest: bytes
    is_known: bool
    epochs: _containers.RepeatedCompositeFieldContainer[Epoch]
    def __init__(self, server: _Optional[str] = ..., digest: _Optional[bytes] = ..., is_known: bool = ..., epochs: _Optional[_Iterable[_Union[Epoch, _Mapping]]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("key", "kind", "n_tokens", "nbytes", "codec", "tiers", "source")
    KEY_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    key: ChunkKey
    kind: str
    n_tokens: int
    nbytes: int
    codec: str
    tiers: _containers.RepeatedScalarFieldContainer[str]
    source: str
    def __init__(self, key: _Optional[_Union[ChunkKey, _Mapping]] = ..., kind: _Optional[str] = ..., n_tokens: _Optional[int] = ..., nbytes: _Optional[int] = ..., codec: _Optional[str] = ..., tiers: _Optional[_Iterable[str]] = ..., source: _Optional[str] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TierStats(_message.Message):
    __slots__ = ("name", "used_bytes", "capacity_bytes", "entries", "is_available", "is_durable")
    NAME_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    IS_AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    IS_DURABLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    used_bytes: int
    capacity_bytes: int
    entries: int
    is_available: bool
    is_durable: bool
    def __init__(self, name: _Optional[str] = ..., used_bytes: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., entries: _Optional[int] = ..., is_available: bool = ..., is_durable: bool = ...) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("counters", "tiers")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    counters: _containers.ScalarMap[str, float]
    tiers: _containers.RepeatedCompositeFieldContainer[TierStats]
    def __init__(self, counters: _Optional[_Mapping[str, float]] = ..., tiers: _Optional[_Iterable[_Union[TierStats, _Mapping]]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: ChunkKey
    def __init__(self, key: _Optional[_Union[ChunkKey, _Mapping]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("hit", "tenant_epoch", "model_epoch", "lines")
    HIT_FIELD_NUMBER: _ClassVar[int]
    TENANT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODEL_EPOCH_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    hit: Hit
    tenant_epoch: int
    model_epoch: int
    lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, hit: _Optional[_Union[Hit, _Mapping]] = ..., tenant_epoch: _Optional[int] = ..., model_epoch: _Optional[int] = ..., lines: _Optional[_Iterable[str]] = ...) -> None: ...
