"""Exit codes that scripts can use."""

from __future__ import annotations

from kvstore.core.errors import (
    AuthError,
    ClosedError,
    DeadlineError,
    ForbiddenError,
    FormatError,
    InvalidInputError,
    KVError,
    NotFoundError,
    TierUnavailableError,
)

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
UNREACHABLE = 4
DENIED = 5
INTERRUPTED = 130
BROKEN_PIPE = 141

EPILOG = """\
exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found or a miss, 4 server unreachable or too slow, 5 denied,
130 interrupted, 141 the reader of the output went away.

environment: LARDER_ADDRESS (host:port of the worker), LARDER_TOKEN (who is calling), LARDER_CA (TLS),
LARDER_CERT and LARDER_KEY (this client's certificate).
"""


# The first class that fits decides.
_CODES: tuple[tuple[type[KVError], int], ...] = (
    (FormatError, FAILED),
    (InvalidInputError, USAGE),
    (NotFoundError, NOT_FOUND),
    (TierUnavailableError, UNREACHABLE),
    (DeadlineError, UNREACHABLE),
    (ClosedError, UNREACHABLE),
    (AuthError, DENIED),
    (ForbiddenError, DENIED),
)


def exit_code(error: KVError) -> int:
    """Return the exit code that an error stands for."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)
