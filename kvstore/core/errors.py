"""The errors of Larder, one tree.

KVError
├── InvalidInputError        the caller sent something that can never work; says what to change
│   ├── ConfigError          a configuration key or value
│   └── FormatError          bytes that are not a chunk, a key or a message of ours
├── CorruptError             bytes of ours that fail their digest; the copy is quarantined
│   └── EvictedError         not damage: a part of the copy is gone, so all of it is; a miss
├── IdentityError            right bytes of the wrong model, codec, tenant or passage
├── NotFoundError            a name that nobody stored; asking for a *chunk* that is absent is a miss, not this error
├── UnsupportedError         a model, RoPE variant, layout or codec that this version does not know
├── MissingExtraError        an optional dependency is not installed
├── AuthError                no identity, or one that is not accepted
├── ForbiddenError           an identity that may not do this
├── CapacityError            it does not fit; smaller input, larger capacity or a later call may succeed
│   └── QuotaError           a tenant has used up what it may use; says when to come again
├── TierUnavailableError     a tier did not answer; the same call may succeed later
├── DeadlineError            the deadline passed first
└── ClosedError              the part is draining or closed
"""

from __future__ import annotations

from typing import ClassVar


class KVError(Exception):
    """Any error of Larder; `code` is the gRPC status name on the wire, `retry_after_s` how long another try should wait at least."""

    code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False
    retry_after_s: float = 0.0


class InvalidInputError(KVError):
    """The caller sent something that can never work; the message says what to change."""

    code: ClassVar[str] = "INVALID_ARGUMENT"


class ConfigError(InvalidInputError):
    """A configuration key is unknown or its value is out of range."""


class FormatError(InvalidInputError):
    """Bytes from outside are not a well-formed chunk, key or message."""


class CorruptError(KVError):
    """Stored or received bytes do not match their digest."""

    code: ClassVar[str] = "DATA_LOSS"
    retryable: ClassVar[bool] = True


class EvictedError(CorruptError):
    """A part of a stored copy was evicted, or expired, before it was read."""


class IdentityError(KVError):
    """Well-formed bytes belong to another model, codec, tenant or passage than the one asked for."""

    code: ClassVar[str] = "FAILED_PRECONDITION"


class NotFoundError(KVError):
    """A passage, document or request is not known here."""

    code: ClassVar[str] = "NOT_FOUND"


class UnsupportedError(KVError):
    """A model family, RoPE variant, layout or codec is not supported and is refused rather than guessed."""

    code: ClassVar[str] = "UNIMPLEMENTED"


class MissingExtraError(KVError):
    """An optional dependency is needed; the message names the extra that installs it."""

    code: ClassVar[str] = "FAILED_PRECONDITION"


class AuthError(KVError):
    """The call carries no identity, or one that is not accepted."""

    code: ClassVar[str] = "UNAUTHENTICATED"


class ForbiddenError(KVError):
    """The identity is known and may not do this."""

    code: ClassVar[str] = "PERMISSION_DENIED"


class CapacityError(KVError):
    """Something does not fit; the message gives the sizes and the setting to raise."""

    code: ClassVar[str] = "RESOURCE_EXHAUSTED"
    retryable: ClassVar[bool] = True


class QuotaError(CapacityError):
    """A tenant has used up what it may use; `retry_after_s` says when the same call may succeed, 0 that waiting alone won't help."""

    def __init__(self, message: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TierUnavailableError(KVError):
    """A tier or server did not answer; the same call may succeed later."""

    code: ClassVar[str] = "UNAVAILABLE"
    retryable: ClassVar[bool] = True


class DeadlineError(KVError):
    """The deadline passed before the work was done."""

    code: ClassVar[str] = "DEADLINE_EXCEEDED"


class ClosedError(KVError):
    """The part is draining or closed and takes no new work."""

    code: ClassVar[str] = "UNAVAILABLE"
    retryable: ClassVar[bool] = True


_SHARED_CODES = {"INVALID_ARGUMENT": InvalidInputError, "FAILED_PRECONDITION": IdentityError, "UNAVAILABLE": TierUnavailableError}


def error_for_code(code: str) -> type[KVError]:
    """Return the class that a status name on the wire stands for; an unknown name is KVError itself."""
    if code in _SHARED_CODES:
        return _SHARED_CODES[code]
    return next((cls for cls in KVError.__subclasses__() if cls.code == code), KVError)


def with_hint(error: KVError, milliseconds: str | bytes) -> KVError:
    """Return the error with what a server says of when to come again; anything but up to six digits says nothing."""
    digits = milliseconds.encode() if isinstance(milliseconds, str) else milliseconds
    if digits.isdigit() and len(digits) <= 6:
        error.retry_after_s = int(digits) / 1000
    return error
