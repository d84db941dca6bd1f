from kvproto.v1 import store_pb2 as _store_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReadAs(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    READ_AS_UNSPECIFIED: _ClassVar[ReadAs]
    READ_AS_DOCUMENT: _ClassVar[ReadAs]
    READ_AS_ALONE: _ClassVar[ReadAs]
    READ_AS_BOTH: _ClassVar[ReadAs]
READ_AS_UNSPECIFIED: ReadAs
READ_AS_DOCUMENT: ReadAs
READ_AS_ALONE: ReadAs
READ_AS_BOTH: ReadAs

class IngestRequest(_message.Message):
    __slots__ = ("source", "passages", "read_as")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    READ_AS_FIELD_NUMBER: _ClassVar[int]
    source: str
    passages: _containers.RepeatedScalarFieldContainer[str]
    read_as: ReadAs
    def __init__(self, source: _Optional[str] = ..., passages: _Optional[_Iterable[str]] = ..., read_as: _Optional[_Union[ReadAs, str]] = ...) -> None: ...

class PassageRef(_message.Message):
    __slots__ = ("id", "source", "index", "n_tokens", "preview")
    ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    id: str
    source: str
    index: int
    n_tokens: int
    preview: str
    def __init__(self, id: _Optional[str] = ..., source: _Optional[str] = ..., index: _Optional[int] = ..., n_tokens: _Optional[int] = ..., preview: _Optional[str] = ...) -> None: ...

class IngestResponse(_message.Message):
    __slots__ = ("passage", "computed", "nbytes", "n_passages", "tokens_read")
    PASSAGE_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    N_PASSAGES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_READ_FIELD_NUMBER: _ClassVar[int]
    passage: PassageRef
    computed: bool
    nbytes: int
    n_passages: int
    tokens_read: int
    def __init__(self, passage: _Optional[_Union[PassageRef, _Mapping]] = ..., computed: bool = ..., nbytes: _Optional[int] = ..., n_passages: _Optional[int] = ..., tokens_read: _Optional[int] = ...) -> None: ...

class AskRequest(_message.Message):
    __slots__ = ("passage_ids", "question", "max_tokens", "temperature", "seed", "policy", "planner", "read_as", "ttft_target_s")
    PASSAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PLANNER_FIELD_NUMBER: _ClassVar[int]
    READ_AS_FIELD_NUMBER: _ClassVar[int]
    TTFT_TARGET_S_FIELD_NUMBER: _ClassVar[int]
    passage_ids: _containers.RepeatedScalarFieldContainer[str]
    question: str
    max_tokens: int
    temperature: float
    seed: int
    policy: str
    planner: str
    read_as: ReadAs
    ttft_target_s: float
    def __init__(self, passage_ids: _Optional[_Iterable[str]] = ..., question: _Optional[str] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., policy: _Optional[str] = ..., planner: _Optional[str] = ..., read_as: _Optional[_Union[ReadAs, str]] = ..., ttft_target_s: _Optional[float] = ...) -> None: ...

class AskResponse(_message.Message):
    __slots__ = ("token", "report")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    token: Token
    report: Report
    def __init__(self, token: _Optional[_Union[Token, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("id", "text")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    id: int
    text: str
    def __init__(self, id: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class PassageReport(_message.Message):
    __slots__ = ("passage", "action", "tier", "variant", "nbytes", "seconds", "why", "rows_recomputed", "read_as", "reason")
    PASSAGE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    ROWS_RECOMPUTED_FIELD_NUMBER: _ClassVar[int]
    READ_AS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    passage: PassageRef
    action: str
    tier: str
    variant: str
    nbytes: int
    seconds: float
    why: str
    rows_recomputed: int
    read_as: ReadAs
    reason: str
    def __init__(self, passage: _Optional[_Union[PassageRef, _Mapping]] = ..., action: _Optional[str] = ..., tier: _Optional[str] = ..., variant: _Optional[str] = ..., nbytes: _Optional[int] = ..., seconds: _Optional[float] = ..., why: _Optional[str] = ..., rows_recomputed: _Optional[int] = ..., read_as: _Optional[_Union[ReadAs, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("request_id", "passages", "planner", "policy", "ttft_split_s", "ttft_s", "predicted_ttft_s", "tokens_loaded", "tokens_recomputed", "tokens_generated", "quality", "target")
    class TtftSplitSEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    PLANNER_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TTFT_SPLIT_S_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TOKENS_LOADED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_RECOMPUTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_GENERATED_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    passages: _containers.RepeatedCompositeFieldContainer[PassageReport]
    planner: str
    policy: str
    ttft_split_s: _containers.ScalarMap[str, float]
    ttft_s: float
    predicted_ttft_s: float
    tokens_loaded: int
    tokens_recomputed: int
    tokens_generated: int
    quality: str
    target: str
    def __init__(self, request_id: _Optional[str] = ..., passages: _Optional[_Iterable[_Union[PassageReport, _Mapping]]] = ..., planner: _Optional[str] = ..., policy: _Optional[str] = ..., ttft_split_s: _Optional[_Mapping[str, float]] = ..., ttft_s: _Optional[float] = ..., predicted_ttft_s: _Optional[float] = ..., tokens_loaded: _Optional[int] = ..., tokens_recomputed: _Optional[int] = ..., tokens_generated: _Optional[int] = ..., quality: _Optional[str] = ..., target: _Optional[str] = ...) -> None: ...

class ResolveRequest(_message.Message):
    __slots__ = ("passage_ids", "read_as")
    PASSAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    READ_AS_FIELD_NUMBER: _ClassVar[int]
    passage_ids: _containers.RepeatedScalarFieldContainer[str]
    read_as: ReadAs
    def __init__(self, passage_ids: _Optional[_Iterable[str]] = ..., read_as: _Optional[_Union[ReadAs, str]] = ...) -> None: ...

class ResolvedPassage(_message.Message):
    __slots__ = ("passage", "key", "token_ids")
    PASSAGE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    passage: PassageRef
    key: _store_pb2.ChunkKey
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, passage: _Optional[_Union[PassageRef, _Mapping]] = ..., key: _Optional[_Union[_store_pb2.ChunkKey, _Mapping]] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ResolveResponse(_message.Message):
    __slots__ = ("passages",)
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    passages: _containers.RepeatedCompositeFieldContainer[ResolvedPassage]
    def __init__(self, passages: _Optional[_Iterable[_Union[ResolvedPassage, _Mapping]]] = ...) -> None: ...

class PassagesRequest(_message.Message):
    __slots__ = ("source", "limit")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    source: str
    limit: int
    def __init__(self, source: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class PassagesResponse(_message.Message):
    __slots__ = ("passage",)
    PASSAGE_FIELD_NUMBER: _ClassVar[int]
    passage: PassageRef
    def __init__(self, passage: _Optional[_Union[PassageRef, _Mapping]] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("source",)
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    source: str
    def __init__(self, source: _Optional[str] = ...) -> None: ...

class ForgetResponse(_message.Message):
    __slots__ = ("n_chunks",)
    N_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    n_chunks: int
    def __init__(self, n_chunks: _Optional[int] = ...) -> None: ...

class ExplainAnswerRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class ExplainAnswerResponse(_message.Message):
    __slots__ = ("report", "lines")
    REPORT_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    report: Report
    lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, report: _Optional[_Union[Report, _Mapping]] = ..., lines: _Optional[_Iterable[str]] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("model", "namespace", "device", "codec", "policy", "planner", "max_context_tokens", "store_address")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PLANNER_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STORE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    model: str
    namespace: str
    device: str
    codec: str
    policy: str
    planner: str
    max_context_tokens: int
    store_address: str
    def __init__(self, model: _Optional[str] = ..., namespace: _Optional[str] = ..., device: _Optional[str] = ..., codec: _Optional[str] = ..., policy: _Optional[str] = ..., planner: _Optional[str] = ..., max_context_tokens: _Optional[int] = ..., store_address: _Optional[str] = ...) -> None: ...
