"""Traces as files: what is written is read, and what nobody should have written is refused by its line."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.errors import FormatError, InvalidInputError
from kvstore.simulate import trace
from kvstore.simulate.trace import HEADER, Asked, TraceRequest, read_trace, write_request
from kvstore.simulate.zipf import Zipf

GOOD = {"at_s": 1.5, "question_tokens": 3, "passages": [["a", 10, 0]]}


def written(path: Path, *lines: object) -> Path:
    """Write a header and lines, each given as text or as a value."""
    file = path / "trace.jsonl"
    file.write_text("\n".join([HEADER, *(line if isinstance(line, str) else json.dumps(line) for line in lines)]) + "\n")
    return file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Measured times too."""
    requests = [TraceRequest(0.25, (Asked("a", 10, 640), Asked("b", 7)), 3, 0.125, 0.25), TraceRequest(2.0, (), 1)]
    assert read_trace(written(tmp_path, *map(write_request, requests))) == requests


def test_equal_passages_share_memory(tmp_path: Path) -> None:
    """A million requests name the same few thousand passages."""
    first, second = read_trace(written(tmp_path, GOOD, GOOD))
    assert first.passages[0] is second.passages[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at_s": -1}, "at_s must be a number of seconds"),
        ({"at_s": True}, "at_s"),
        ({"at_s": 10**400}, "at_s must be a number of seconds"),
        ({"ttft_s": "fast"}, "ttft_s"),
        ({"question_tokens": 0}, "within 1 and 16777216, got 0"),
        ({"question_tokens": 1.5}, "question_tokens"),
        ({"passages": {}}, "a list of at most 4096"),
        ({"passages": [["a", 10]]}, "key of 1 to 64 characters"),
        ({"passages": [["", 10, 0]]}, "key of 1 to 64 characters"),
        ({"passages": [["a" * 65, 10, 0]]}, "key of 1 to 64 characters"),
        ({"passages": [[["a"], 10, 0]]}, "key of 1 to 64 characters"),
        ({"passages": [["a", 10**400, 0]]}, "tokens must be an integer within 1"),
        ({"passages": [["a", 10, -1]]}, "stored bytes must be an integer within 0"),
        ({"passages": [["a", 10, 0], ["a", 11, 0]]}, "passage a has 11 tokens here and 10 before"),
        ({"text": "secret"}, "a request is an object with at_s, question_tokens, passages"),
    ],
)
def test_a_request_that_is_not_one_is_refused_by_its_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    """The file may come from anywhere."""
    with pytest.raises(FormatError, match=f"line 3 of the trace.*{message}"):
        read_trace(written(tmp_path, GOOD, {**GOOD, **change}))


@pytest.mark.parametrize("line", ["[" * 100_000, "{", '{"at_s": NaN, "question_tokens": 1, "passages": []}', "\x00", "1", "null"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, line: str) -> None:
    """Also where it would exhaust the parser's stack."""
    with pytest.raises(FormatError, match="line 2 of the trace"):
        read_trace(written(tmp_path, line))


@pytest.mark.parametrize("head", ["", "{}", '{"larder_trace": 2}', '{"larder_trace": true}', "7"])
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, head: str) -> None:
    """By what its first line should be."""
    file = tmp_path / "trace.jsonl"
    file.write_text(head)
    with pytest.raises(FormatError, match=r"larder_trace|version"):
        read_trace(file)


def test_a_line_without_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A gigabyte of digits takes no gigabyte of memory."""
    with pytest.raises(FormatError, match="more than 1048576 B"):
        read_trace(written(tmp_path, "1" * (2 << 20)))


def test_a_trace_that_asks_for_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept in memory is bounded."""
    monkeypatch.setattr(trace, "MAX_ASKED", 2)
    with pytest.raises(FormatError, match="line 4 of the trace: over 2 passages"):
        read_trace(written(tmp_path, GOOD, GOOD, GOOD))


@settings(derandomize=True, max_examples=100)
@given(st.binary(max_size=200))
def test_no_bytes_end_in_another_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Either a trace or FormatError."""
    file = tmp_path_factory.mktemp("bytes") / "trace"
    file.write_bytes(HEADER.encode() + b"\n" + data)
    with suppress(FormatError):
        assert isinstance(read_trace(file), list)


def test_synthetic_traffic_is_what_its_fields_say() -> None:
    """2,000 requests of 8 different passages out of 300, each with a length of its own within the bounds."""
    requests = Zipf(seed=3).trace()
    passages = {asked for request in requests for asked in request.passages}
    assert len(requests) == 2000
    assert all(len({asked.key for asked in request.passages}) == 8 for request in requests)
    assert len(passages) == 300
    assert 64 <= min(p.n_tokens for p in passages) < 80
    assert 1800 < max(p.n_tokens for p in passages) <= 2048


def test_popularity_falls_as_a_power_of_the_rank() -> None:
    """Rank 1 against rank 10 at exponent 1: ten times as often, within the error of some 300 draws of the latter."""
    requests = Zipf(requests=20_000, per_request=1, exponent=1.0).trace()
    first, tenth = (sum(r.passages[0].key == key for r in requests) for key in ("p0", "p9"))
    assert first / tenth == pytest.approx(10, rel=0.2)


def test_noise_leaves_the_popular_part_as_it_was() -> None:
    """So what it costs is the noise's doing; each of its passages comes once."""
    quiet = Zipf(requests=100, seed=7)
    noisy = replace(quiet, noise=0.5).trace()
    once = [asked.key for r in noisy for asked in r.passages if asked.key.startswith("once")]
    assert [r.passages for r in noisy if r.passages[0].key[0] == "p"] == [r.passages for r in quiet.trace()]
    assert len(once) == len(set(once)) == 100 * 8


def test_a_spec_is_read_and_a_wrong_one_says_what_is_known() -> None:
    """It is typed by people."""
    assert Zipf.parse("zipf:exponent=0.8,seed=3") == Zipf(exponent=0.8, seed=3)
    assert Zipf.parse("zipf") == Zipf()
    for text, message in (
        ("zipf:alpha=1", "'alpha' is not known; known are requests"),
        ("zipf:seed=x", "seed must be of type int, got 'x'"),
        ("uniform", "not a kind of synthetic traffic"),
        ("zipf:noise=1", "noise is a share within 0 and 0.99"),
        ("zipf:exponent=nan", "exponent within 0 and 10"),
        ("zipf:requests=0", "1 to 1000000 requests"),
        ("zipf:shortest=9,longest=8", "the shortest not above the longest"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            Zipf.parse(text)
