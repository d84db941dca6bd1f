"""`larder up` as a process of its own, used as a RAG backend uses it, stopped and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from kvclient import AsyncLarder, Larder
from kvstore.core.errors import AuthError, InvalidInputError, KVError, NotFoundError
from kvworker.engine.engine_hf import HFEngine, load_engine
from tests.e2e.processes import Process, start, stop
from tests.engine.prompts import Tiny

EXAMPLE = Path(__file__).parents[2] / "examples" / "ten_lines.py"
TEXTS = ["Aldermoor exports salt and wool.", "It trusts Corwick.", "Corwick mends every pump."]
QUESTION = " What does it export?"


@pytest.fixture(scope="module")
def tiny(model: Path) -> Tiny:
    """Return the served model as an engine and as the plain library's."""
    return Tiny("llama", model, load_engine(model, device="cpu"), AutoModelForCausalLM.from_pretrained(model, local_files_only=True))


@pytest.fixture
def larder(up: Process) -> Iterator[Larder]:
    """Connect."""
    with Larder(up.address, up.token) as larder:
        yield larder


def expected(tiny: Tiny, texts: list[str], n_tokens: int = 8) -> list[int]:
    """Return what the library generates over passages with a BOS of their own and the question."""
    engine: HFEngine = tiny.engine
    ids = [token for text in texts for token in (engine.bos_id or 0, *engine.encode(text))]
    return tiny.greedy([*ids, *engine.encode(QUESTION)], n_tokens)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1,)])
def test_a_backend_gets_the_answer_of_a_full_prefill(larder: Larder, tiny: Tiny, order: tuple[int, ...]) -> None:
    """Over gRPC, with the policy that is always exact."""
    ids = larder.ingest("notes.txt", TEXTS).ids
    answer = larder.ask([ids[i] for i in order], QUESTION, max_tokens=8, policy="all", planner="always_load").finish()
    assert [token.id for token in answer.tokens] == expected(tiny, [TEXTS[i] for i in order])
    report = answer.report
    assert [row.passage.id for row in report.passages] == [ids[i] for i in order]
    assert report.tokens_generated == len(answer.tokens)
    assert sum(report.ttft_split_s.values()) <= report.ttft_s


def test_loading_is_reported_with_tier_variant_bytes_and_seconds(larder: Larder) -> None:
    """The second time, decoded copies on the device are nearer than the store."""
    ids = larder.ingest("report.txt", ["A text that nobody else reads.", "And another."]).ids
    rows = [larder.ask(ids, QUESTION, max_tokens=2, planner="always_load").finish().report.passages for _ in range(2)]
    assert [[row.tier for row in asked] for asked in rows] == [["memory"] * 2, ["device"] * 2]
    assert all(row.nbytes > 0 and row.variant == "raw" and row.why for asked in rows for row in asked)
    assert all(row.seconds > 0 for row in rows[0])


def test_asyncio_gets_the_same_as_threads(up: Process, larder: Larder, tiny: Tiny) -> None:
    """Eight questions at once over one client."""
    ids = larder.ingest("notes.txt", TEXTS).ids

    async def ask_all() -> list[list[int]]:
        async with AsyncLarder(up.address, up.token) as client:
            assert (await client.ingest("notes.txt", TEXTS)).n_computed == 0

            async def ask() -> list[int]:
                return [token.id async for token in client.ask(ids, QUESTION, max_tokens=8, policy="all")]

            return await asyncio.gather(*(ask() for _ in range(8)))

    assert asyncio.run(ask_all()) == [expected(tiny, TEXTS)] * 8


def test_the_ten_line_example_runs_as_it_is(up: Process) -> None:
    """With nothing but address and token in its environment."""
    done = subprocess.run([sys.executable, str(EXAMPLE)], env=up.client_env(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "notes/harbour.txt#0" in done.stdout
    assert "first token after" in done.stdout


def test_fetched_chunks_are_the_keys_and_values_of_the_engine(larder: Larder, tiny: Tiny) -> None:
    """Decoded to numpy, for an engine of one's own."""
    ids = larder.ingest("notes.txt", TEXTS).ids
    engine = tiny.engine
    exported = engine.export([[engine.bos_id or 0, *engine.encode(text)] for text in TEXTS])
    for chunk, passage in zip(larder.chunks(ids), exported, strict=True):
        for (k, v), group in zip(chunk.to_numpy(), passage, strict=True):
            np.testing.assert_allclose(k, group.k.numpy(), rtol=0, atol=1e-4)
            np.testing.assert_allclose(v, group.v.numpy(), rtol=0, atol=1e-4)


def test_an_invalidated_document_is_a_miss_until_it_is_read_again(larder: Larder) -> None:
    """Others are not touched."""
    ids = larder.ingest("taken-back.txt", ["A text to be taken back."]).ids
    other = larder.ingest("kept.txt", ["A text to be kept."]).ids
    larder.invalidate(source="taken-back.txt")
    taken, kept = larder.chunks([*ids, *other])
    assert (taken.blob, taken.reason) == (None, "epoch")
    assert kept.blob is not None
    assert larder.ingest("taken-back.txt", ["A text to be taken back."]).n_computed == 1


@pytest.mark.parametrize(
    ("names", "policy", "planner", "error"),
    [
        (["nobody.txt#0"], "", "", NotFoundError),
        (["no name"], "", "", InvalidInputError),
        (["notes.txt#0"], "magic", "", InvalidInputError),
        (["notes.txt#0"], "", "magic", InvalidInputError),
        (["notes.txt#0"] * 40, "", "", InvalidInputError),
    ],
)
def test_errors_arrive_as_what_they_are(larder: Larder, names: list[str], policy: str, planner: str, error: type[KVError]) -> None:
    """Typed, over the wire."""
    larder.ingest("notes.txt", TEXTS)
    with pytest.raises(error):
        larder.ask(names, QUESTION, policy=policy, planner=planner).finish()


def test_a_stranger_is_refused(up: Process) -> None:
    """Whatever they ask for."""
    with Larder(up.address, "not-a-token-of-anybody") as stranger, pytest.raises(AuthError):
        stranger.ask(["notes.txt#0"], QUESTION).finish()


def test_an_answer_left_early_frees_the_worker(larder: Larder, tiny: Tiny) -> None:
    """The next question is answered."""
    ids = larder.ingest("notes.txt", TEXTS).ids
    for _ in range(3):
        with larder.ask(ids, QUESTION, max_tokens=300) as answer:
            next(answer)
    last = larder.ask(ids, QUESTION, max_tokens=8, policy="all").finish()
    assert [token.id for token in last.tokens] == expected(tiny, TEXTS)


def test_a_server_that_is_told_to_stop_ends_with_0_and_finds_its_passages_again(model: Path, tmp_path: Path, tiny: Tiny) -> None:
    """Acknowledged passages are on disk; nothing is computed again, and the tokens file stays."""
    command = ("up", "--model", str(model), "--address", "127.0.0.1:0", "--memory", "32MiB", "--disk", "64MiB")
    first = start(tmp_path, *command)
    with Larder(first.address, first.token) as larder:
        ids = larder.ingest("notes.txt", TEXTS).ids
        token = first.token
    assert stop(first) == 0
    second = start(tmp_path, *command)
    assert second.token == token
    with Larder(second.address, token) as larder:
        again = larder.ingest("notes.txt", TEXTS)
        assert (again.n_computed, again.ids) == (0, ids)
        answer = larder.ask(["notes.txt#2", "notes.txt#0"], QUESTION, max_tokens=8, policy="all", planner="always_load").finish()
    assert [token.id for token in answer.tokens] == expected(tiny, [TEXTS[2], TEXTS[0]])
    assert stop(second, signal.SIGINT) == 0
    assert "Traceback" not in second.log


def test_a_running_server_keeps_no_file_open_per_question(up: Process, larder: Larder) -> None:
    """Nor a thread."""
    ids = larder.ingest("notes.txt", TEXTS).ids

    def count() -> tuple[int, int]:
        return len(os.listdir(f"/proc/{up.popen.pid}/fd")), len(os.listdir(f"/proc/{up.popen.pid}/task"))

    def ask(n: int) -> None:
        for _ in range(n):
            larder.ask(ids, QUESTION, max_tokens=1).finish()

    ask(70)  # every thread of the server's pool has been started by then
    files, threads = count()
    ask(30)
    assert count()[0] <= files + 1
    assert count()[1] <= threads + 1
