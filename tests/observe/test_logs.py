"""Log lines that can be joined with what `larder explain` says of a request."""

from __future__ import annotations

import json
import logging
from contextvars import copy_context

import pytest

from kvstore.core import calling
from kvstore.server.logs import JsonLines, TextLines


def _record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("larder.test", logging.WARNING, "file.py", 1, message, args, info)


def _inside(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Return the line that is written while a request is served."""

    def write() -> str:
        calling.join_request("request-0001")
        calling.work_for("alpha")
        return formatter.format(record)

    return copy_context().run(write)


def test_a_json_line_names_request_and_tenant() -> None:
    """One object per line, whatever the message holds."""
    line = json.loads(_inside(JsonLines(), _record('a "quoted"\nmessage of %d B', 7)))
    assert line["message"] == 'a "quoted"\nmessage of 7 B'
    assert (line["request"], line["tenant"], line["level"], line["logger"]) == ("request-0001", "alpha", "warning", "larder.test")
    assert line["time"].endswith("+00:00")


def test_a_json_line_is_one_line() -> None:
    """A message or a traceback with line breaks would otherwise become lines of its own."""
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        text = JsonLines().format(_record("failed", error=error))
    assert "\n" not in text
    assert "ValueError: two" in json.loads(text)["error"]


def test_a_line_outside_of_any_request_names_none() -> None:
    """Such as those of the start."""
    assert set(json.loads(copy_context().run(JsonLines().format, _record("hello")))) == {"time", "level", "logger", "message"}


def test_a_text_line_ends_with_request_and_tenant() -> None:
    """For whoever reads without a tool."""
    assert _inside(TextLines(), _record("hello")).endswith("WARNING larder.test: hello [request-0001 alpha]")


@pytest.mark.parametrize("offered", ["short", "x" * 65, "a b c d e f", "line\nbreak-0001", "größe-0001", "", "<script>alert(1)"])
def test_an_id_from_elsewhere_that_is_none_is_ignored(offered: str) -> None:
    """It ends up in logs, pages and metadata."""

    def join() -> str:
        calling.join_request(offered)
        return calling.request_id()

    assert copy_context().run(join) == ""


def test_a_request_keeps_the_id_that_it_has() -> None:
    """A worker that is called by a router answers for the router's request."""

    def begin() -> tuple[str, str]:
        calling.join_request("request-0001")
        return calling.begin_request(), calling.begin_request()

    assert copy_context().run(begin) == ("request-0001", "request-0001")


def test_every_request_without_an_id_gets_one_of_its_own() -> None:
    """In a context of its own."""
    first, second = (copy_context().run(calling.begin_request) for _ in range(2))
    assert first != second
    assert calling.is_request_id(first)
