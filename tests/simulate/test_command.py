"""`larder simulate`: what it prints for programs and people, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kvclient.cli.main import main
from kvstore.simulate.scenario import assumed_costs
from kvstore.simulate.trace import HEADER, Asked, TraceRequest, write_request


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


Simulate = Callable[..., Result]
SMALL = "zipf:requests=40,passages=30"


@pytest.fixture
def simulate(capsys: pytest.CaptureFixture[str]) -> Simulate:
    """Return a function that runs the command."""

    def run(*argv: str) -> Result:
        return Result(main(["simulate", *argv]), *capsys.readouterr())

    return run


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Return a trace of two passages of 100 tokens, 64 KiB stored, asked for twice."""
    request = TraceRequest(0.0, (Asked("a", 100, 65536), Asked("b", 100, 0)), 9)
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join([HEADER, *[write_request(request)] * 2]))
    return file


def test_one_row_for_the_trace_as_given_and_one_for_each_change(simulate: Simulate) -> None:
    """By default: twice the memory, half of it, and LRU."""
    rows = simulate("--synthetic", SMALL, "--json").records
    assert [row["label"] for row in rows] == ["as given", "memory=2x", "memory=0.5x", "eviction=lru"]
    assert rows[1]["hit_share"] > rows[0]["hit_share"] > rows[2]["hit_share"]
    numbers = ["hit_share", "loaded_share", "saved_s", "mean_ttft_s", "p95_ttft_s", "read_nbytes", "written_nbytes", "requests"]
    assert list(rows[0]) == ["label", *numbers, "setting"]


def test_people_get_a_table(simulate: Simulate) -> None:
    """With the setting above it."""
    out = simulate("--synthetic", SMALL, "--disk", "50%", "--try", "disk_speed=2x").out
    assert out.startswith("40 requests; memory ")
    assert [line.split()[0] for line in out.splitlines()[3:]] == ["as", "disk_speed=2x"]
    assert "disk written" in out


def test_a_recorded_trace_says_what_a_token_takes(simulate: Simulate, trace: Path) -> None:
    """From the passages whose size was recorded, unless the command line says it."""
    [row, _] = simulate(str(trace), "--try", "planner=always_load", "--json").records
    assert "655 B per token" in row["setting"]
    assert "100 B per token" in simulate(str(trace), "--bytes-per-token", "100", "--json").records[0]["setting"]


def test_a_share_of_memory_is_of_what_is_asked_for_again(simulate: Simulate, trace: Path) -> None:
    """All of it finds everything that was there before."""
    [row] = simulate(str(trace), "--memory", "100%", "--json").records[:1]
    assert row["hit_share"] == 0.5


def test_the_costs_of_a_worker_are_used(simulate: Simulate, trace: Path, tmp_path: Path) -> None:
    """Its codec too; here loading takes no time at all."""
    told = assumed_costs().to_json()
    told["costs"]["codec int8"] = told["costs"].pop("codec raw")
    told["costs"]["prefill"]["coefficients"] = [0.0, 1.0, 0.0]
    file = tmp_path / "costs.json"
    file.write_text(json.dumps(told))
    [row] = simulate(str(trace), "--costs", str(file), "--json").records[:1]
    assert row["p95_ttft_s"] == pytest.approx(209.0)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ((), 2, "name a trace file, or --synthetic zipf"),
        (("FILE", "--synthetic", "zipf"), 2, "not both"),
        (("--synthetic", "zipf:alpha=1"), 2, "known are requests"),
        (("--synthetic", SMALL, "--try", "colour=red"), 2, "known are memory"),
        (("--synthetic", SMALL, "--memory", "x%"), 2, "neither a size nor a percentage"),
        (("--synthetic", SMALL, "--memory", "infx"), 2, "not a size"),
        (("--synthetic", SMALL, "--memory", "0"), 2, "capacity above 0"),
        (("--synthetic", SMALL, "--bytes-per-token", "-1"), 2, "bytes_per_token is above 0"),
        (("no such file",), 1, "no such file"),
        (("--synthetic", SMALL, "--costs", "FILE"), 1, "not the costs of a worker"),
    ],
)
def test_what_is_wrong_is_one_line(simulate: Simulate, trace: Path, argv: tuple[str, ...], code: int, message: str) -> None:
    """With the exit code that scripts know."""
    result = simulate(*(str(trace) if arg == "FILE" else arg for arg in argv))
    assert result.code == code
    assert message in result.err
    assert result.err.count("\n") == 1


def test_an_empty_trace_is_refused(simulate: Simulate, tmp_path: Path) -> None:
    """A table of zeros would be no answer."""
    (tmp_path / "empty").write_text(HEADER)
    assert "holds no request" in simulate(str(tmp_path / "empty")).err
