"""A trace: who asked for which passages, without saying what they are. One request per line of JSON, behind one line that names the format.

    {"larder_trace": 1}
    {"at_s": 0.0, "question_tokens": 12, "passages": [["9f86d081884c7d65", 133, 0], ["60303ae22b998861", 98, 200704]]}

`at_s` is seconds since any moment. A passage is [key, tokens, stored bytes]: the key says only whether it is the same passage as in another
line, the bytes are 0 where they are not known. A line may also say what was measured: `ttft_s` and `predicted_ttft_s`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kvstore.core.errors import FormatError

HEADER = '{"larder_trace": 1}'
MAX_LINE_NBYTES = 1 << 20
MAX_PASSAGES = 4096  # of one request
MAX_ASKED = 8_000_000  # passages of all requests
MAX_TOKENS = 1 << 24
MAX_NBYTES = 1 << 40
MAX_KEY_CHARS = 64
MAX_SECONDS = 1e12
_MEASURED = ("ttft_s", "predicted_ttft_s")


class Asked(NamedTuple):
    """One passage of a request; `nbytes` is the size of its stored chunk, 0 where it is not known."""

    key: str
    n_tokens: int
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request: when it came, its passages in the order of the prompt, the tokens behind them, and what was measured, 0 if nothing."""

    at_s: float
    passages: tuple[Asked, ...]
    question_tokens: int
    ttft_s: float = 0.0
    predicted_ttft_s: float = 0.0


def write_request(request: TraceRequest) -> str:
    """Return the line of a request, without its end."""
    measured = {name: round(value, 6) for name in _MEASURED if (value := getattr(request, name))}
    passages = [list(asked) for asked in request.passages]
    value = {"at_s": round(request.at_s, 3), "question_tokens": request.question_tokens, "passages": passages, **measured}
    return json.dumps(value, separators=(",", ":"))


def read_trace(path: Path) -> list[TraceRequest]:
    """Read and check a file that may come from anywhere; raises FormatError that names file and line, and OSError.

    What is kept is bounded: 8,000,000 passages asked in all, and equal ones share memory.
    """
    with path.open("rb") as file:
        try:
            return list(_checked(_lines(file)))
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines, none longer than the limit."""
    while line := file.readline(MAX_LINE_NBYTES + 1):
        if len(line) > MAX_LINE_NBYTES:
            raise FormatError(f"a line of the trace has more than {MAX_LINE_NBYTES} B")
        yield line


def _checked(lines: Iterable[bytes]) -> Iterator[TraceRequest]:
    """Yield the requests of a trace."""
    known: dict[str, Asked] = {}
    n_asked, number = 0, 0
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            if number == 1:
                _check_header(value)
                continue
            request = _read(value, known)
        except (FormatError, ValueError, RecursionError) as error:
            raise FormatError(f"line {number} of the trace: {error}") from error
        n_asked += len(request.passages)
        if n_asked > MAX_ASKED:
            raise FormatError(f"line {number} of the trace: over {MAX_ASKED} passages in all; cut the file")
        yield request
    if not number:
        raise FormatError(f"the trace is empty; its first line is {HEADER}")


def _check_header(value: Any) -> None:
    if not isinstance(value, dict) or "larder_trace" not in value:
        raise FormatError(f"the first line should be {HEADER}")
    if value != {"larder_trace": 1} or isinstance(value["larder_trace"], bool):
        raise FormatError(f"version {value['larder_trace']!r} is not known here; this one reads version 1")


def _read(value: Any, known: dict[str, Asked]) -> TraceRequest:
    """Check one request."""
    names = ("at_s", "question_tokens", "passages", *_MEASURED)
    if not isinstance(value, dict) or not set(names[:3]) <= set(value) <= set(names):
        raise FormatError(f"a request is an object with {', '.join(names[:3])}, and {' and '.join(_MEASURED)} where they were measured")
    passages = value["passages"]
    if not isinstance(passages, list) or len(passages) > MAX_PASSAGES:
        raise FormatError(f"passages must be a list of at most {MAX_PASSAGES}")
    question_tokens = _count(value["question_tokens"], "question_tokens", 1, MAX_TOKENS)
    seconds = [_seconds(value.get(name, 0.0), name) for name in ("at_s", *_MEASURED)]
    return TraceRequest(seconds[0], tuple(_passage(p, known) for p in passages), question_tokens, *seconds[1:])


def _passage(value: Any, known: dict[str, Asked]) -> Asked:
    """Check one passage; one key has one length."""
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[0], str) or not 1 <= len(value[0]) <= MAX_KEY_CHARS:
        raise FormatError(f"a passage is [key of 1 to {MAX_KEY_CHARS} characters, tokens, stored bytes], got {str(value)[:80]}")
    asked = Asked(value[0], _count(value[1], "tokens", 1, MAX_TOKENS), _count(value[2], "stored bytes", 0, MAX_NBYTES))
    before = known.setdefault(asked.key, asked)
    if before.n_tokens != asked.n_tokens:
        raise FormatError(f"passage {asked.key} has {asked.n_tokens} tokens here and {before.n_tokens} before")
    return before if before == asked else asked


def _count(value: Any, name: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise FormatError(f"{name} must be an integer within {least} and {most}, got {str(value)[:40]}")
    return value


def _seconds(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_SECONDS:
        raise FormatError(f"{name} must be a number of seconds within 0 and {MAX_SECONDS:g}, got {str(value)[:40]}")
    return float(value)
