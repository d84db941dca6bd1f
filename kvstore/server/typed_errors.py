"""Nothing but errors of ours leaves a store."""

from __future__ import annotations

import logging
from types import TracebackType

from kvstore.core.errors import KVError

logger = logging.getLogger(__name__)


class TypedErrors:
    """Let KVError through and turn any other exception within the block into one, with a log line that keeps its traceback."""

    def __init__(self, call: str) -> None:
        self._call = call

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, KVError):
            raise ours(self._call, error) from error


def ours(call: str, error: Exception) -> KVError:
    """Return what stands for a defect of ours, and log it with its traceback."""
    logger.error("%s failed", call, exc_info=error)
    return KVError(f"the store failed at {call}; its log says why")
